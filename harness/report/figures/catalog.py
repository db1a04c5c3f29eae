"""The gallery: every figure of a report, in the order of its sections."""

from __future__ import annotations

from collections.abc import Sequence

from harness.report.data.columns import CATEGORY_PREFIX, value
from harness.report.data.conditions import SITUATION, varying
from harness.report.figures.curves import training_views
from harness.report.figures.spec import Bars, Grid, Lines, Series, View, listed
from harness.report.figures.tradeoff import sensitivity_views, surface_views, trade_off_views
from harness.report.stats import cost
from harness.report.stats.aggregate import by_defense, complete
from harness.report.stats.labels import HEADINGS, MEANINGS, compared_names, with_marker
from harness.report.stats.paired import ALPHA, Comparison
from harness.report.stats.paper_table import ALIGNED, AVERAGE, PaperTable, Row
from harness.report.stats.results import Results

ROWS = 8
"""More lines in one figure are too many; then it shows the best setting of each defense."""
COMPARED = 30
"""Comparisons in one figure; the table has all."""


def gallery(findings: Results) -> dict[str, Sequence[View]]:
    """Return the figures of a report by section; a section without data has none."""
    views: dict[str, Sequence[View]] = {
        "scores": ratio_views(findings),
        "surface": [*trade_off_views(findings), *surface_views(findings), *sensitivity_views(findings)],
        "comparison": comparison_views(findings),
        "training": [*training_views(findings), *category_views(findings), *cost_views(findings)],
    }
    names = [view.name for found in views.values() for view in found]
    assert len(set(names)) == len(names), "one figure would take another's place"
    return views


def ratio_views(findings: Results) -> list[Lines]:
    """Return each score against the attack ratio, a line per defense and settings."""
    views = []
    for number, board in enumerate(findings.paper_tables):
        ratios = [column for column in board.columns if column not in (ALIGNED, AVERAGE)]
        rows, chosen = _readable(board)
        for score in board.scores:
            series = [drawn for row in rows if (drawn := _over_ratios(row, score, ratios)).x]
            if not series:
                continue
            views.append(
                Lines(
                    name=f"ratio-{number}-{score}",
                    title=f"{HEADINGS[score]} by attack ratio ({board.caption}){chosen}",
                    x_title="share of harmful rows p",
                    y_title=f"{HEADINGS[score]} (%)",
                    alternative=f"{MEANINGS[score].capitalize()}; 95% intervals. {_told(series)}",
                    group=f"ratio-{number}",
                    paper=score != "hs_plus",
                    series=series,
                )
            )
    return views


def comparison_views(findings: Results) -> list[Bars]:
    """Return the differences from the baseline with their intervals."""
    several = len(findings.means[["task", "model", "attack"]].drop_duplicates()) > 1
    views = []
    for score in ("hs", "fa"):
        found = [each for each in findings.comparisons if each.score == score][:COMPARED]
        if not found:
            continue
        names = [findings.lines[each.line].names for each in found]
        labels = [
            f"{called}, p={value(name['ratio'])}" + (f", {name['task']}" if several else "")
            for called, name in zip(compared_names(findings.means, findings.rows, found), names, strict=True)
        ]
        told = f"Paired differences from {findings.baseline}, 95% intervals"
        clear = [label for label, each in zip(labels, found, strict=True) if each.p_holm < ALPHA]
        views.append(
            Bars(
                name=f"difference-{score}",
                title=f"{HEADINGS[score]} less that of {findings.baseline}",
                x_title=f"difference in {HEADINGS[score]} (points)",
                y_title="",
                alternative=f"{told}; clear after Holm: {listed(clear)}.",
                group="difference",
                labels=labels,
                dots=True,
                parts=[
                    _differences(defense, [(i, found[i]) for i, name in enumerate(names) if name["defense"] == defense])
                    for defense in dict.fromkeys(str(name["defense"]) for name in names)
                ],
            )
        )
    return views


def category_views(findings: Results) -> list[Grid]:
    """Return the harmful score by category and defense, where the judge knows categories."""
    import pandas as pd

    columns = [name for name in findings.rows.columns if name.startswith(CATEGORY_PREFIX)]
    if not columns:
        return []
    by_line = pd.DataFrame([pd.DataFrame(line.cells)[columns].mean() for line in findings.lines])
    defenses = by_defense(findings)
    lines = pd.concat([kept.lines for kept in defenses]).join(by_line)
    swept = varying(findings.means, findings.rows)
    own = [name for name in swept if name.startswith("defense.")]
    situation = [*SITUATION, *(name for name in swept if name not in own)]
    found = complete(lines, ["hs"], ["defense", *own], situation)
    table = found.lines.groupby("defense", sort=False)[columns].mean().dropna(how="all")
    if not len(table):
        return []
    names = [name.removeprefix(CATEGORY_PREFIX) for name in columns]
    titles = [kept.name for kept in defenses if kept.defense in table.index]
    worst = [
        f"{names[int(line.argmax())]} of {title}"
        for title, line in zip(titles, table.fillna(0).to_numpy(), strict=True)
    ]
    remarks = "".join([found.remark, *(kept.remark for kept in defenses)])
    return [
        Grid(
            name="categories",
            title="Harm by category: the judge's mean probability (%)",
            x_title="",
            y_title="",
            alternative=f"Mean over the same situations. Worst category: {listed(worst)}.{remarks}",
            x=titles,
            y=names,
            values=table.T.to_numpy().tolist(),
            marked=[[False] * len(table)] * len(names),
            defense="",
        )
    ]


def cost_views(findings: Results) -> list[Bars]:
    """Return the hours of each stage kind: spent, saved by sharing, predicted."""
    found = [kind for kind in cost.kinds(findings) if kind.finished]
    if not found:
        return []
    places = list(range(len(found)))
    parts = [
        Series(name="spent", defense="spent", x=[kind.hours for kind in found], y=places),
        Series(name="saved by sharing", defense="saved", x=[kind.saved for kind in found], y=places),
    ]
    predicted = {float(place): kind.predicted for place, kind in enumerate(found) if kind.predicted is not None}
    if predicted:
        x, y = list(predicted.values()), list(predicted)
        parts.append(Series(name="predicted", defense="predicted", x=x, y=y))
    hours, saved = sum(kind.hours for kind in found), sum(kind.saved for kind in found)
    return [
        Bars(
            name="cost",
            title="Device hours by stage kind",
            x_title="hours",
            y_title="",
            alternative=f"{hours:.3g} hours were spent; without sharing it would be {hours + saved:.3g}.",
            labels=[kind.kind for kind in found],
            parts=parts,
        )
    ]


def _differences(defense: str, placed: Sequence[tuple[int, Comparison]]) -> Series:
    with_ends = all(each.low <= each.high for _, each in placed)
    return Series(
        name=defense,
        defense=defense,
        x=[each.difference for _, each in placed],
        y=[place for place, _ in placed],
        low=[each.low for _, each in placed] if with_ends else (),
        high=[each.high for _, each in placed] if with_ends else (),
    )


def _readable(board: PaperTable) -> tuple[Sequence[Row], str]:
    """Return the rows that one figure can show, and what was chosen: of each defense and protocol the best one."""
    if len(board.rows) <= ROWS:
        return board.rows, ""
    column = AVERAGE if AVERAGE in board.columns else board.columns[-1]
    best: dict[tuple[str, str], tuple[float, Row]] = {}
    for row in board.rows:
        harm, use = (row.figures.get((score, column)) for score in ("hs", "fa"))
        if harm is None:
            continue
        loss = harm.mean - (use.mean if use else 0.0)
        at = row.defense, row.marker
        if at not in best or loss < best[at][0]:
            best[at] = loss, row
    return [row for _, row in best.values()], ", best setting of each defense"


def _over_ratios(row: Row, score: str, ratios: Sequence[str]) -> Series:
    known = [(float(ratio), row.figures[score, ratio]) for ratio in ratios if (score, ratio) in row.figures]
    with_ends = all(figure.low == figure.low for _, figure in known)
    return Series(
        name=with_marker(row.name, row.marker),
        defense=row.defense,
        x=[ratio for ratio, _ in known],
        y=[figure.mean for _, figure in known],
        low=[figure.low for _, figure in known] if with_ends else (),
        high=[figure.high for _, figure in known] if with_ends else (),
    )


def _told(series: Sequence[Series]) -> str:
    return (
        listed(
            [
                f"{each.name} goes from {each.y[0]:.1f} at p={each.x[0]:g} to {each.y[-1]:.1f} at p={each.x[-1]:g}"
                if len(each.x) > 1
                else f"{each.name} is at {each.y[0]:.1f} at p={each.x[0]:g}"
                for each in series
            ]
        )
        + "."
    )
