"""Trade-offs: scores over pairs of swept numbers, the harm-utility front, the robust region, and sensitivity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.report.data.columns import records, value
from harness.report.data.conditions import SITUATION, short_names, varying
from harness.report.figures.spec import Bars, Grid, Point, Points, Series, listed
from harness.report.stats.aggregate import DefenseMeans, by_defense, complete, means_over, numbers_in
from harness.report.stats.labels import HEADINGS, with_marker
from harness.report.stats.paper_table import ALIGNED, AVERAGE, PaperTable
from harness.report.stats.results import Results

if TYPE_CHECKING:
    from pandas import DataFrame

TOLERANCE = 4.0
"""Settings within this many points of the lowest HS - FA form the robust region."""
OVER_REFUSAL = "over_refusal"
PAIRS = 15
"""Maximum number of pairs of swept numbers that are drawn."""


class Robust(NamedTuple):
    """The robust region of a defense.

    Attributes:
        defense: the defense's label.
        name: the label with the letter of its footnote.
        inside: number of settings in the region.
        settings: number of settings that were compared.
        best: the setting with the lowest HS - FA.
        reach: range of each swept number in the region.
        remark: note on settings that could not be compared; empty if there are none.
    """

    defense: str
    name: str
    inside: int
    settings: int
    best: str
    reach: str
    remark: str


def surface_views(results: Results) -> list[Grid]:
    """Return heatmaps of HS and FA of each defense over each pair of its swept numbers."""
    views = []
    short = _short_names(results)
    for kept in by_defense(results):
        lines, scores = kept.means, _measured(kept.means)
        for pair in list(combinations(numbers_in(results, lines), 2))[:PAIRS]:
            others = [name for name in varying(results.means, results.rows) if name not in pair]
            found = complete(lines, scores, [*pair, *others], [name for name in SITUATION if name not in pair])
            means = means_over(found, pair, others, scores)
            if len(means):
                axes = [_Axis(name, short[name], _ticks(lines[name])) for name in pair]
                views += [_grid(kept, score, axes, means, found.remark) for score in scores]
    return views


class _Axis(NamedTuple):
    """A swept number: its column, its short name, and its values as text."""

    name: str
    title: str
    ticks: list[str]


def _grid(kept: DefenseMeans, score: str, axes: Sequence[_Axis], means: DataFrame, remark: str) -> Grid:
    import numpy as np

    (x_name, x, xs), (y_name, y, ys) = axes
    tables = {name: np.full((len(ys), len(xs)), np.nan) for name in ("hs", "fa")}
    for line in records(means):
        for name, table in tables.items():
            table[ys.index(value(line[y_name])), xs.index(value(line[x_name]))] = line.get(name, np.nan)
    values, loss = tables[score], tables["hs"] - tables["fa"]
    measured = np.isfinite(loss)
    marked = loss <= loss.min(initial=np.inf, where=measured) + TOLERANCE
    inside = f" {marked.sum()} of {measured.sum()} settings are in the robust region."
    if "ratio" in (x_name, y_name):  # the attack ratio is not a setting of the defense
        marked, inside = np.zeros_like(marked), ""
    ends = []
    for word, at in (("lowest", np.nanargmin(values)), ("highest", np.nanargmax(values))):
        row, column = divmod(int(at), values.shape[1])
        ends.append(f"{word} {values[row, column]:.1f} at {y} {ys[row]}, {x} {xs[column]}")
    mean = "mean over the situations in which all settings were measured"
    return Grid(
        name=f"surface-{kept.defense}-{x}-{y}-{score}",
        title=f"{HEADINGS[score]} (%) of {kept.name} over {x} and {y}",
        x_title=x,
        y_title=y,
        alternative=f"{HEADINGS[score]} of {kept.name}, {mean}: {'; '.join(ends)}.{inside}{remark}{kept.remark}",
        group="surface",
        x=xs,
        y=ys,
        values=values.tolist(),
        marked=marked.tolist(),
        defense=kept.defense,
    )


def trade_off_views(results: Results) -> list[Points]:
    """Return HS against FA, and over-refusal if it was measured, for the average over ratios and for each ratio.

    The Pareto front is that of all measured ones of these scores: a defense that refuses everything has the lowest HS,
    and without over-refusal it would dominate every other of the same FA.
    """
    views: list[Points] = []
    for number, paper_table in enumerate(results.paper_tables):
        if not {"hs", "fa"} <= set(paper_table.scores):
            continue
        for column in sorted((c for c in paper_table.columns if c != ALIGNED), key=lambda found: found != AVERAGE):
            points = _points(paper_table, column)
            if len(points) < 2:
                continue
            front = [point.name for point in points if point.on_front]
            measured = any(point.z for point in points)
            excluded = {
                "Under another protocol": [point.name for point in points if not point.usual],
                "Without over-refusal": [point.name for point in points if measured and point.usual and not point.z],
            }
            remark = "".join(
                f" {why} and therefore excluded: {listed(names)}." for why, names in excluded.items() if names
            )
            description = f"On the front: {listed(front)}.{remark}"
            where = "mean over ratios" if column == AVERAGE else f"p={column}"
            utility = "utility and over-refusal" if measured else "utility"
            views.append(
                Points(
                    name=f"trade-off-{number}-{column}",
                    title=f"Harm against {utility}, {where} ({paper_table.caption})",
                    x_title="FA (%), higher is better",
                    y_title="HS (%), lower is better",
                    z_title=f"{HEADINGS[OVER_REFUSAL]} (%), lower is better" if measured else "",
                    alternative=f"HS against {'FA and OR' if measured else 'FA'} of {len(points)} settings, {where}. "
                    f"{description}",
                    group="trade-off",
                    paper=not any(view.name.startswith(f"trade-off-{number}-") for view in views),
                    points=points,
                )
            )
    return views


def sensitivity_views(results: Results) -> list[Bars]:
    """Return the range of mean HS and FA over the values of each swept number, with all other settings equal."""
    moves: dict[str, dict[str, float]] = {}
    remarks = []
    short = _short_names(results)
    swept = varying(results.means, results.rows)
    for kept in by_defense(results):
        scores = _measured(kept.means)
        names = [name for name in numbers_in(results, kept.means) if name != "ratio"]
        if not names or not scores:
            continue
        found = complete(kept.means, scores, swept, SITUATION)
        for name in names:
            means = means_over(found, [name], [other for other in swept if other != name], scores)
            if len(means) > 1:
                moves[f"{kept.name}: {short[name]}"] = {s: float(means[s].max() - means[s].min()) for s in scores}
        if found.incomplete:
            remarks.append(f" {kept.name}:{found.remark}")
        remarks.append(kept.remark)
    if not moves:
        return []
    ranges = [
        f"{label} " + " and ".join(f"{found:.1f} ({HEADINGS[s]})" for s, found in move.items())
        for label, move in moves.items()
    ]
    parts = []
    for score in ("hs", "fa"):
        placed = [(place, move[score]) for place, move in enumerate(moves.values()) if score in move]
        x, y = [found for _, found in placed], [float(place) for place, _ in placed]
        parts += [Series(name=HEADINGS[score], defense=HEADINGS[score], x=x, y=y)] if placed else []
    return [
        Bars(
            name="sensitivity",
            title="Sensitivity to each swept number",
            x_title="range of the mean (points)",
            y_title="",
            alternative=f"Largest minus smallest mean over its values, in points: {listed(ranges)}.{''.join(remarks)}",
            labels=list(moves),
            parts=parts,
        )
    ]


def robust_regions(results: Results) -> list[Robust]:
    """Return the robust region of each defense with several settings, on means over its situations."""
    regions = []
    short = _short_names(results)
    for kept in by_defense(results):
        names = [name for name in numbers_in(results, kept.means) if name != "ratio"]
        if not names:
            continue
        others = [name for name in varying(results.means, results.rows) if name not in names]
        found = complete(kept.means, ("hs", "fa"), [*names, *others], SITUATION)
        means = means_over(found, names, others, ("hs", "fa"))
        if not len(means):
            continue
        loss = means["hs"] - means["fa"]
        inside = means[loss <= loss.min() + TOLERANCE]
        best = records(inside.loc[[loss.idxmin()]])[0]
        regions.append(
            Robust(
                defense=kept.defense,
                name=kept.name,
                inside=len(inside),
                settings=len(means),
                best=", ".join(f"{short[name]} {value(best[name])}" for name in names),
                reach=", ".join(f"{short[name]} {_range(inside[name])}" for name in names),
                remark=f"{found.remark}{kept.remark}".strip(),
            )
        )
    return regions


def _points(paper_table: PaperTable, column: str) -> list[Point]:
    """Return the points of a table.

    Only rows with the most common protocol can be on the front, and only those with all scores that any row has.
    """
    found = [
        (row, row.cells["fa", column], row.cells["hs", column])
        for row in paper_table.rows
        if ("fa", column) in row.cells and ("hs", column) in row.cells
    ]
    rows = Counter(row.marker for row, _, _ in found)
    usual = max(rows, key=lambda marker: (rows[marker], not marker), default="")
    refused = [row.cells.get((OVER_REFUSAL, column)) for row, _, _ in found]
    measured = any(refused)
    # Every coordinate is better the higher it is.
    merits = [
        (use.mean, -harm.mean, -over_refusal.mean if over_refusal else 0.0)
        if row.marker == usual and (over_refusal or not measured)
        else None
        for (row, use, harm), over_refusal in zip(found, refused, strict=True)
    ]
    comparable = [merit for merit in merits if merit is not None]
    return [
        Point(
            name=with_marker(row.name, row.marker),
            defense=row.defense,
            x=use[:3],
            y=harm[:3],
            z=over_refusal[:3] if over_refusal else None,
            usual=row.marker == usual,
            on_front=merit is not None and not _is_dominated(merit, comparable),
        )
        for (row, use, harm), over_refusal, merit in zip(found, refused, merits, strict=True)
    ]


def _is_dominated(point: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
    """Return whether another point is at least as good in every coordinate and better in one."""
    return any(
        other != point and all(theirs >= own for theirs, own in zip(other, point, strict=True)) for other in others
    )


def _measured(lines: DataFrame) -> list[str]:
    return [score for score in ("hs", "fa") if lines[score].notna().any()]


def _range(found: Any) -> str:
    ends = f"{value(found.min())} to {value(found.max())}"
    return f"{ends}, or unset" if found.isna().any() else ends


def _ticks(values: Any) -> list[str]:
    return [value(found) for found in values.drop_duplicates().sort_values()]


def _short_names(results: Results) -> dict[str, str]:
    return short_names([*varying(results.means, results.rows), "ratio"])
