"""The figure catalog: all figures of a report, by section."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import nan

from harness.report.data.columns import CATEGORY_PREFIX, KEY_PREFIX, grading_of, lacks
from harness.report.data.conditions import SITUATION, condition_name, differing, varying
from harness.report.figures.attacker import attacker_views
from harness.report.figures.curves import training_views
from harness.report.figures.diversity import diversity_views
from harness.report.figures.judges import judge_views
from harness.report.figures.spec import Bars, FigureSpec, Grid, Lines, Series, listed
from harness.report.figures.tradeoff import sensitivity_views, surface_views, trade_off_views
from harness.report.stats import cost
from harness.report.stats.aggregate import by_defense, complete
from harness.report.stats.labels import HEADINGS, MEANINGS, compared_names, where, with_marker
from harness.report.stats.paired import ALPHA, Comparison
from harness.report.stats.paper_table import ALIGNED, AVERAGE, CellValue, PaperTable, Row
from harness.report.stats.results import Results

ROWS = 8
"""Maximum number of lines per figure; above it, only the best setting of each defense is shown."""
COMPARED = 30
"""Maximum number of comparisons per figure; the table has all of them."""


def figure_catalog(results: Results) -> dict[str, Sequence[FigureSpec]]:
    """Return the figures of a report by section; sections without data are empty."""
    views: dict[str, Sequence[FigureSpec]] = {
        "scores": ratio_views(results),
        "judges": judge_views(results),
        "attacker": attacker_views(results),
        "surface": [*trade_off_views(results), *surface_views(results), *sensitivity_views(results)],
        "comparison": comparison_views(results),
        "diversity": diversity_views(results),
        "training": [*training_views(results), *category_views(results), *cost_views(results)],
    }
    names = [view.name for found in views.values() for view in found]
    assert len(set(names)) == len(names), "names of figures are file names and must be unique"
    return views


def ratio_views(results: Results) -> list[Lines]:
    """Return each score against the attack ratio, with a line per defense and settings."""
    views = []
    for number, paper_table in enumerate(results.paper_tables):
        ratios = [column for column in paper_table.columns if column not in (ALIGNED, AVERAGE)]
        rows, chosen = _readable(paper_table)
        for score in paper_table.scores:
            series = [drawn for row in _distinct(rows, score) if (drawn := _over_ratios(row, score, ratios)).x]
            if not series:
                continue
            views.append(
                Lines(
                    name=f"ratio-{number}-{score.replace('_', '-')}",
                    title=f"{HEADINGS[score]} by attack ratio ({paper_table.caption}){chosen}",
                    x_title="share of harmful rows p",
                    y_title=f"{HEADINGS[score]} (%)",
                    alternative=f"{MEANINGS[score].capitalize()}; {_intervals(series)}. {_description(series)}",
                    group=f"ratio-{number}",
                    paper=score != "hs_plus",
                    series=series,
                )
            )
    return views


def comparison_views(results: Results) -> list[Bars]:
    """Return the differences from the baseline with their intervals."""
    views = []
    for score in ("hs", "fa", "over_refusal"):
        every = _hypotheses(results, [each for each in results.comparisons if each.score == score])
        if not every:
            continue
        found = every[:COMPARED]
        cut = f", the first {COMPARED} of {len(every)}" if len(every) > COMPARED else ""
        names = [results.conditions[each.line].names for each, *_ in found]
        parts = [
            _differences(defense, [(i, found[i][0]) for i, name in enumerate(names) if name["defense"] == defense])
            for defense in dict.fromkeys(str(name["defense"]) for name in names)
        ]
        description = f"Paired differences from {results.baseline}{cut}, {_intervals(parts)}"
        views.append(
            Bars(
                name=f"difference-{score.replace('_', '-')}",
                title=f"{HEADINGS[score]} less that of {results.baseline}{cut}",
                x_title=f"difference in {HEADINGS[score]} (points)",
                y_title="",
                alternative=f"{description}; {_significant(results, every)}.",
                group="difference",
                labels=_labels(results, found),
                dots=True,
                parts=parts,
            )
        )
    return views


def category_views(results: Results) -> list[Grid]:
    """Return the harmful score by category and defense, if the judge has categories."""
    import pandas as pd

    columns = [name for name in results.rows.columns if name.startswith(CATEGORY_PREFIX)]
    if not columns:
        return []
    by_condition = pd.DataFrame([pd.DataFrame(condition.cells)[columns].mean() for condition in results.conditions])
    defenses = by_defense(results)
    lines = pd.concat([kept.means for kept in defenses]).join(by_condition)
    swept = varying(results.means, results.rows)
    own = [name for name in swept if name.startswith("defense.")]
    situation = [*SITUATION, *(name for name in swept if name not in own)]
    found = complete(lines, ["hs"], ["defense", *own], situation)
    table = found.means.groupby("defense", sort=False)[columns].mean().dropna(how="all")
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


def cost_views(results: Results) -> list[Bars]:
    """Return the device hours of each stage kind: spent, saved by sharing, predicted."""
    found = [kind for kind in cost.kinds(results) if kind.finished]
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
            alternative=f"{hours:.3g} hours were spent; without sharing it would have been {hours + saved:.3g}.",
            labels=[kind.kind for kind in found],
            parts=parts,
        )
    ]


def _hypotheses(results: Results, comparisons: Sequence[Comparison]) -> list[list[Comparison]]:
    """Return the comparisons of a score by the gradings that they compare, which conditions of two judges may share."""
    shared: dict[Hashable, list[Comparison]] = {}
    for each in comparisons:
        key = KEY_PREFIX + grading_of(each.score).stage
        sides = [results.conditions[side].cells for side in (each.line, each.other)]
        grades = tuple(frozenset(cell.get(key) for cell in cells) for cells in sides)
        unknown = each if any(map(lacks, frozenset().union(*grades))) else None
        names = results.conditions[each.line].names
        place = names["defense"], where(results.means, names), grades, unknown
        shared.setdefault(place, []).append(each)
    return list(shared.values())


def _significant(results: Results, comparisons: Sequence[Sequence[Comparison]]) -> str:
    """Return which of all comparisons of a score are significant."""
    if all(each.p != each.p for each, *_ in comparisons):
        return "not tested, with one seed"
    found = [same for same in comparisons if same[0].p_holm < ALPHA]
    return f"significant after Holm: {listed(_labels(results, found))}"


def _labels(results: Results, comparisons: Sequence[Sequence[Comparison]]) -> list[str]:
    """Return what each comparison compares, and where; of several with the same gradings, what they have in common."""
    called = compared_names(results.means, results.rows, [each for each, *_ in comparisons])
    swept = varying(results.means, results.rows)
    labels = []
    for same, name in zip(comparisons, called, strict=True):
        names = [results.conditions[each.line].names for each in same]
        varied = differing(names, swept)
        common = condition_name(names[0], [each for each in swept if each not in varied]) if varied else name
        labels.append(f"{common}, {where(results.means, names[0])}")
    return labels


def _intervals(series: Sequence[Series]) -> str:
    return "95% intervals" if any(each.low for each in series) else "without intervals, of one seed"


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


def _readable(paper_table: PaperTable) -> tuple[Sequence[Row], str]:
    """Return the rows of a figure, and a title suffix; if there are too many, the best of each defense and protocol."""
    if len(paper_table.rows) <= ROWS:
        return paper_table.rows, ""
    column = AVERAGE if AVERAGE in paper_table.columns else paper_table.columns[-1]
    best: dict[tuple[str, str], tuple[float, Row]] = {}
    for row in paper_table.rows:
        harm, use = (row.cells.get((score, column)) for score in ("hs", "fa"))
        if harm is None:
            continue
        loss = harm.mean - (use.mean if use else 0.0)
        at = row.defense, row.marker
        if at not in best or loss < best[at][0]:
            best[at] = loss, row
    if len(best) == len(paper_table.rows):
        return paper_table.rows, ""
    return [row for _, row in best.values()], ", the setting of each defense with the lowest HS - FA"


def _distinct(rows: Sequence[Row], score: str) -> list[Row]:
    """Return the rows of a figure: one for all that share the gradings of a score, as those of several judges do."""
    shared: dict[Hashable, list[Row]] = {}
    for row in rows:
        unknown = row.name if any(map(lacks, row.grades[score])) else ""
        shared.setdefault((row.defense, row.grades[score], unknown), []).append(row)
    return [_joined(found) for found in shared.values()]


def _joined(rows: Sequence[Row]) -> Row:
    """Return a row under the settings that all have."""
    first, *others = rows
    if not others:
        return first
    varied = differing([row.settings for row in rows])
    name = condition_name(
        {"defense": first.defense, **first.settings}, [name for name in first.settings if name not in varied]
    )
    marker = first.marker if all(row.marker == first.marker for row in others) else ""
    return first._replace(name=name, marker=marker)


def _over_ratios(row: Row, score: str, ratios: Sequence[str]) -> Series:
    """Return a row's values over the ratios, with a gap where one between others is missing."""
    places = [place for place, ratio in enumerate(ratios) if (score, ratio) in row.cells]
    within = ratios[places[0] : places[-1] + 1] if places else ()
    nothing = CellValue(nan, nan, nan)
    found = [(float(ratio), row.cells.get((score, ratio), nothing)) for ratio in within]
    with_ends = all(figure.low == figure.low for _, figure in found if figure is not nothing)
    return Series(
        name=with_marker(row.name, row.marker),
        defense=row.defense,
        x=[ratio for ratio, _ in found],
        y=[figure.mean for _, figure in found],
        low=[figure.low for _, figure in found] if with_ends else (),
        high=[figure.high for _, figure in found] if with_ends else (),
    )


def _description(series: Sequence[Series]) -> str:
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
