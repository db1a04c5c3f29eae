"""Tables in the format of the field's papers: a row per defense, columns by score and attack ratio, and an average.

There is one table per task, model, attack and probe: scores of different questions are not compared in a column.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.corpora.probe import PROBE
from harness.report.data.columns import KEY_PREFIX, grading_of, value
from harness.report.data.conditions import Condition, condition_name, varying
from harness.report.data.scores import Graded
from harness.report.stats.interval import estimates
from harness.report.stats.labels import markers
from harness.report.stats.summary import HIGH, LOW, NOTE, panel

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandas import DataFrame

AVERAGE = "average"
ALIGNED = "aligned"
SHOWN = ("hs", "fa", "over_refusal", "hs_plus")
"""The scores of a table, in its order: HS+ comes last, because wide tables scroll."""
_BLOCK = ("task", "model", "attack")


class CellValue(NamedTuple):
    """A score in a table, in percent; ``best`` if it is significantly better than all others of its column."""

    mean: float
    low: float
    high: float
    best: bool = False


class Row(NamedTuple):
    """A defense with its settings.

    Attributes:
        defense: the defense's label.
        name: the label with its settings.
        marker: letter of the footnote on its protocol; empty if it has the most common one.
        cells: the scores, by score and column.
        settings: the swept values in which rows differ, by name.
        grades: the keys of the gradings behind each score, over all ratios.
    """

    defense: str
    name: str
    marker: str
    cells: Mapping[tuple[str, str], CellValue]
    settings: Mapping[str, Any]
    grades: Mapping[str, Collection[Hashable]]


class PaperTable(NamedTuple):
    """A table of defenses.

    Attributes:
        caption: the labels that all rows share.
        columns: the columns of each score: ``aligned`` (the model before fine-tuning), the ratios, ``average``.
        scores: the column groups.
        rows: the defenses.
    """

    caption: str
    columns: Sequence[str]
    scores: Sequence[str]
    rows: Sequence[Row]


class Evidence(NamedTuple):
    """Input of the tables: tidy rows, conditions, their means, their verdicts, and the best of each column."""

    rows: DataFrame
    conditions: Sequence[Condition]
    means: DataFrame
    grades: Mapping[str, Graded]
    best: Collection[tuple[int, str]]


def paper_tables(evidence: Evidence) -> list[PaperTable]:
    """Return the tables of a sweep; scores without any result are left out, in the table of a probe also its own."""
    blocks: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, condition in enumerate(evidence.conditions):
        blocks[tuple(value(condition.names.get(name)) for name in (*_BLOCK, PROBE))].append(index)
    present = [score for score in SHOWN if evidence.means[score].notna().any()]
    measured = {
        block: [score for score in present if block[-1] == "-" or evidence.means[score].iloc[indices].notna().any()]
        for block, indices in blocks.items()
    }
    return [_paper_table(evidence, indices, measured[block] or present) for block, indices in blocks.items()]


def _paper_table(evidence: Evidence, indices: Sequence[int], scores: Sequence[str]) -> PaperTable:
    conditions, means = evidence.conditions, evidence.means
    swept = [name for name in varying(means, evidence.rows) if name != PROBE]
    letters = markers(means)
    grouped: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index in indices:
        names = conditions[index].names
        same = tuple(str(names[name]) for name in ("defense", *swept))
        grouped[same, str(means[NOTE].iloc[index])].append(index)
    ratios = sorted({float(conditions[index].names["ratio"]) for index in indices})
    lines = list(grouped.values())
    averaged = _averages(evidence, lines, ratios, scores) if len(ratios) > 1 else {}
    aligned = _aligned(evidence, lines, scores)
    rows = []
    for number, members in enumerate(lines):
        names, note = conditions[members[0]].names, str(means[NOTE].iloc[members[0]])
        cells = {
            (score, f"{float(conditions[index].names['ratio']):g}"): _figure(evidence, index, score)
            for index in members
            for score in scores
        }
        for column, found in ((ALIGNED, aligned), (AVERAGE, averaged)):
            cells |= {(score, column): found[number, score] for score in scores if (number, score) in found}
        known = {place: figure for place, figure in cells.items() if figure.mean == figure.mean}
        defense, settings = str(names["defense"]), {name: names[name] for name in swept}
        grades = {score: _grades(evidence, members, score) for score in scores}
        rows.append(Row(defense, condition_name(names, swept), letters.get(note, ""), known, settings, grades))
    has_aligned = any((score, ALIGNED) in row.cells for row in rows for score in scores)
    columns = [*([ALIGNED] if has_aligned else []), *(f"{ratio:g}" for ratio in ratios)]
    common: Mapping[str, Any] = conditions[indices[0]].names
    labels = [*_BLOCK, *([PROBE] if value(common.get(PROBE)) != "-" else [])]
    caption = ", ".join(f"{name} {value(common[name])}" for name in labels)
    return PaperTable(caption, [*columns, *([AVERAGE] if averaged else [])], scores, rows)


def _grades(evidence: Evidence, members: Sequence[int], score: str) -> frozenset[Hashable]:
    key = KEY_PREFIX + grading_of(score).stage
    return frozenset(cell.get(key) for index in members for cell in evidence.conditions[index].cells)


def _figure(evidence: Evidence, index: int, score: str) -> CellValue:
    mean, low, high = (float(evidence.means[score + end].iloc[index]) for end in ("", LOW, HIGH))
    return CellValue(mean, low, high, best=(index, score) in evidence.best)


def _aligned(
    evidence: Evidence, rows: Sequence[Sequence[int]], scores: Sequence[str]
) -> dict[tuple[int, str], CellValue]:
    """Return the scores of each row's aligned models, which the ratios share: over the seeds of all of them."""
    panels = {}
    for number, members in enumerate(rows):
        cells = [cell for index in members for cell in evidence.conditions[index].cells]
        every = Condition(evidence.conditions[members[0]].names, cells)
        for score in scores:
            found = panel(every, f"{ALIGNED}_{score}", evidence.grades)
            # A seed with several aligned models has no single score.
            if found.seeds and len(set(found.seeds)) == len(found.seeds):
                panels[number, score] = found
    return {
        place: CellValue(found.mean, 100 * estimate.low, 100 * estimate.high)
        for (place, found), estimate in zip(
            panels.items(), estimates([found.values for found in panels.values()]), strict=True
        )
    }


def _averages(
    evidence: Evidence, rows: Sequence[Sequence[int]], ratios: Sequence[float], scores: Sequence[str]
) -> dict[tuple[int, str], CellValue]:
    """Return the mean over the ratios, for rows that have all ratios with the same seeds and prompts."""
    panels = {}
    for number, members in enumerate(rows):
        found = [evidence.conditions[index] for index in members]
        if sorted(float(condition.names["ratio"]) for condition in found) != list(ratios):
            continue
        for score in scores:
            if (panel := _over_ratios(found, score, evidence)) is not None:
                panels[number, score] = panel
    return {
        place: CellValue(100 * estimate.mean, 100 * estimate.low, 100 * estimate.high)
        for place, estimate in zip(panels, estimates(list(panels.values())), strict=True)
    }


def _over_ratios(conditions: Sequence[Condition], score: str, evidence: Evidence) -> NDArray[Any] | None:
    """Return the verdicts averaged over conditions with the same seeds and number of prompts.

    A generation that could not be judged at one ratio is replaced by the mean of its seed there, so that the average
    equals that of the scores; it is missing only if it could not be judged at any ratio.
    """
    import numpy as np

    panels = [panel(condition, score, evidence.grades) for condition in conditions]
    seeds = sorted(panels[0].seeds, key=str)
    shapes = {panel.values.shape for panel in panels}
    if not seeds or len(shapes) != 1 or any(sorted(panel.seeds, key=str) != seeds for panel in panels):
        return None
    # Sweeps that are reported together may have the seeds in another order at each ratio.
    values = np.stack([panel.values[[panel.seeds.index(seed) for seed in seeds]] for panel in panels])
    holes = np.isnan(values)
    filled = np.where(holes, np.nanmean(values, axis=2, keepdims=True), values).mean(axis=0)
    averaged: NDArray[Any] = np.where(holes.all(axis=0), np.nan, filled)
    return averaged
