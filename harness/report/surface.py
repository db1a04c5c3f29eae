"""Surfaces: scores over any two swept numbers, the harm-utility front, the robust region, and sensitivity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from harness.report.board import ALIGNED, AVERAGE, Board
from harness.report.findings import Findings
from harness.report.views import Bars, Grid, Point, Points, Series, listed
from harness.report.wording import HEADINGS, value, varying

if TYPE_CHECKING:
    from pandas import DataFrame

TOLERANCE = 4.0
"""Points of HS - FA within which a setting is as good as the best: the robust region."""
PAIRS = 15
"""Pairs of swept numbers that are drawn."""


class Robust(NamedTuple):
    """The robust region of a defense: how many of its settings are in it, and how far each swept number reaches."""

    defense: str
    inside: int
    settings: int
    best: str
    reach: str


def numbers_in(findings: Findings, means: DataFrame) -> list[str]:
    """Return the swept numbers that vary among some lines, the attack ratio last."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    names = [*varying(findings.means, findings.rows), "ratio"]
    return [
        name
        for name in names
        if means[name].dropna().nunique() > 1
        and is_numeric_dtype(means[name].dropna().infer_objects())
        and not is_bool_dtype(means[name].dropna().infer_objects())
    ]


def surface_views(findings: Findings) -> list[Grid]:
    """Return HS and FA of every defense over every pair of numbers that were swept for it."""
    views = []
    for defense, means in findings.means.groupby("defense", sort=False):
        for x, y in list(combinations(numbers_in(findings, means), 2))[:PAIRS]:
            grids = {
                score: means.pivot_table(index=y, columns=x, values=score, aggfunc="mean", dropna=False)
                for score in ("hs", "fa")
            }
            views += [_grid(str(defense), score, grids) for score in grids if grids[score].notna().to_numpy().any()]
    return views


def _grid(defense: str, score: str, grids: Mapping[str, DataFrame]) -> Grid:
    import numpy as np

    grid = grids[score]
    values = grid.to_numpy(dtype="float64")
    loss = (grids["hs"] - grids["fa"]).to_numpy(dtype="float64")
    measured = np.isfinite(loss)
    marked = loss <= loss.min(initial=np.inf, where=measured) + TOLERANCE
    x, y = _short(str(grid.columns.name)), _short(str(grid.index.name))
    ends = []
    for word, at in (("lowest", np.nanargmin(values)), ("highest", np.nanargmax(values))):
        row, column = divmod(int(at), values.shape[1])
        place = f"{y} {value(grid.index[row])}, {x} {value(grid.columns[column])}"
        ends.append(f"{word} {values[row, column]:.1f} at {place}")
    inside = f"{marked.sum()} of {measured.sum()} settings are in the robust region"
    return Grid(
        name=f"surface-{defense}-{x}-{y}-{score}",
        title=f"{HEADINGS[score]} (%) of {defense} over {x} and {y}",
        x_title=x,
        y_title=y,
        alternative=f"{HEADINGS[score]} of {defense}, mean over everything else: {'; '.join(ends)}. {inside}.",
        group="surface",
        x=[value(found) for found in grid.columns],
        y=[value(found) for found in grid.index],
        values=values.round(2).tolist(),
        marked=marked.tolist(),
        defense=defense,
    )


def trade_off_views(findings: Findings) -> list[Points]:
    """Return HS against FA with the front, for the average over ratios and for each ratio."""
    views: list[Points] = []
    for number, board in enumerate(findings.boards):
        if not {"hs", "fa"} <= set(board.scores):
            continue
        for column in sorted((c for c in board.columns if c != ALIGNED), key=lambda found: found != AVERAGE):
            points = _points(board, column)
            if len(points) < 2:
                continue
            front = [point.name for point in points if point.on_front]
            where = "mean over ratios" if column == AVERAGE else f"p={column}"
            views.append(
                Points(
                    name=f"trade-off-{number}-{column}",
                    title=f"Harm against utility, {where} ({board.caption})",
                    x_title="FA (%), higher is better",
                    y_title="HS (%), lower is better",
                    alternative=f"HS against FA of {len(points)} settings, {where}. On the front: {listed(front)}.",
                    group="trade-off",
                    paper=not any(view.name.startswith(f"trade-off-{number}-") for view in views),
                    points=points,
                )
            )
    return views


def sensitivity_views(findings: Findings) -> list[Bars]:
    """Return how far HS and FA move when one swept number goes through its values, everything else averaged."""
    labels, moves = [], []
    for defense, means in findings.means.groupby("defense", sort=False):
        for name in numbers_in(findings, means):
            if name == "ratio":
                continue
            marginal = means.groupby(name)[["hs", "fa"]].mean()
            labels.append(f"{defense}: {_short(name)}")
            moves.append((marginal.max() - marginal.min()).round(2))
    if not labels:
        return []
    places = list(range(len(labels)))
    told = [f"{label} {move['hs']:.1f} and {move['fa']:.1f}" for label, move in zip(labels, moves, strict=True)]
    return [
        Bars(
            name="sensitivity",
            title="Sensitivity to each swept number",
            x_title="largest less smallest mean over its values (points)",
            y_title="",
            alternative=f"Points by which HS and FA move: {listed(told)}.",
            labels=labels,
            parts=[
                Series(name=HEADINGS[s], defense=HEADINGS[s], x=[float(m[s]) for m in moves], y=places)
                for s in ("hs", "fa")
            ],
        )
    ]


def robust_regions(findings: Findings) -> list[Robust]:
    """Return the robust region of every defense with several settings, on the mean over its ratios."""
    regions = []
    for defense, means in findings.means.groupby("defense", sort=False):
        names = [name for name in numbers_in(findings, means) if name != "ratio"]
        if not names:
            continue
        scores = means.groupby(names)[["hs", "fa"]].mean()
        loss = (scores["hs"] - scores["fa"]).dropna()
        if not len(loss):
            continue
        inside = loss[loss <= loss.min() + TOLERANCE].reset_index()
        best = inside.loc[inside[0].idxmin()]
        regions.append(
            Robust(
                defense=str(defense),
                inside=len(inside),
                settings=len(loss),
                best=", ".join(f"{_short(name)} {value(best[name])}" for name in names),
                reach=", ".join(f"{_short(n)} {value(inside[n].min())} to {value(inside[n].max())}" for n in names),
            )
        )
    return regions


def _points(board: Board, column: str) -> list[Point]:
    found = [
        (row, row.figures["fa", column], row.figures["hs", column])
        for row in board.rows
        if ("fa", column) in row.figures and ("hs", column) in row.figures
    ]
    places: Sequence[tuple[float, float]] = [(use.mean, harm.mean) for _, use, harm in found]
    return [
        Point(name=row.name, defense=row.defense, x=use[:3], y=harm[:3], on_front=not _beaten(place, places))
        for (row, use, harm), place in zip(found, places, strict=True)
    ]


def _beaten(place: tuple[float, float], places: Sequence[tuple[float, float]]) -> bool:
    return any(use >= place[0] and harm <= place[1] and (use, harm) != place for use, harm in places)


def _short(name: str) -> str:
    return name.rpartition(".")[2]
