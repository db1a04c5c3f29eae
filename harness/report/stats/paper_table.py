"""Boards: tables as the field's papers print them, with defenses down, scores and attack ratios across, and an average.

Cells that differ in task, model or attack are on different boards.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.report.data.columns import value
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
SHOWN = ("hs", "hs_plus", "fa")
_BLOCK = ("task", "model", "attack")


class Figure(NamedTuple):
    """A number of a board, in percent; ``best`` if the paired test says that no other of its column is as good."""

    mean: float
    low: float
    high: float
    best: bool = False


class Row(NamedTuple):
    """A defense with its settings.

    Attributes:
        defense: its name.
        name: with its settings.
        marker: letter of the footnote on how it was trained or evaluated otherwise; empty for most.
        figures: by score and column.
    """

    defense: str
    name: str
    marker: str
    figures: Mapping[tuple[str, str], Figure]


class PaperTable(NamedTuple):
    """A table.

    Attributes:
        caption: what all rows have in common.
        columns: of each score: ``aligned`` (where the model stood before the attack), the ratios, ``average``.
        scores: the column groups.
        rows: the defenses.
    """

    caption: str
    columns: Sequence[str]
    scores: Sequence[str]
    rows: Sequence[Row]


class Evidence(NamedTuple):
    """What boards are made of: tidy rows, lines, their means, the verdicts behind them, and what is best."""

    rows: DataFrame
    lines: Sequence[Condition]
    means: DataFrame
    grades: Mapping[str, Graded]
    best: Collection[tuple[int, str]]


def paper_tables(evidence: Evidence) -> list[PaperTable]:
    """Return the boards of a sweep; a score without a single result is on none."""
    blocks: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index, line in enumerate(evidence.lines):
        blocks[tuple(value(line.names[name]) for name in _BLOCK)].append(index)
    present = [score for score in SHOWN if evidence.means[score].notna().any()]
    return [_board(evidence, indices, present) for indices in blocks.values()]


def _board(evidence: Evidence, indices: Sequence[int], scores: Sequence[str]) -> PaperTable:
    lines, means = evidence.lines, evidence.means
    swept = varying(means, evidence.rows)
    letters = markers(means)
    grouped: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index in indices:
        names = lines[index].names
        same = tuple(str(names[name]) for name in ("defense", *swept))
        grouped[same, str(means[NOTE].iloc[index])].append(index)
    ratios = sorted({float(lines[index].names["ratio"]) for index in indices})
    averaged = _averages(evidence, list(grouped.values()), ratios, scores) if len(ratios) > 1 else {}
    rows = []
    for number, members in enumerate(grouped.values()):
        names, note = lines[members[0]].names, str(means[NOTE].iloc[members[0]])
        figures = {
            (score, f"{float(lines[index].names['ratio']):g}"): _figure(evidence, index, score)
            for index in members
            for score in scores
        }
        figures |= {(score, ALIGNED): _aligned(evidence, members, score) for score in scores}
        figures |= {(score, AVERAGE): averaged[number, score] for score in scores if (number, score) in averaged}
        known = {place: figure for place, figure in figures.items() if figure.mean == figure.mean}
        rows.append(Row(str(names["defense"]), condition_name(names, swept), letters.get(note, ""), known))
    has_aligned = any((score, ALIGNED) in row.figures for row in rows for score in scores)
    columns = [*([ALIGNED] if has_aligned else []), *(f"{ratio:g}" for ratio in ratios)]
    common: Mapping[str, Any] = lines[indices[0]].names
    caption = ", ".join(f"{name} {value(common[name])}" for name in _BLOCK)
    return PaperTable(caption, [*columns, *([AVERAGE] if averaged else [])], scores, rows)


def _figure(evidence: Evidence, index: int, score: str) -> Figure:
    return _read(evidence, index, score)._replace(best=(index, score) in evidence.best)


def _aligned(evidence: Evidence, members: Sequence[int], score: str) -> Figure:
    """Return where a defense's aligned model stands; the ratios share it."""
    return _read(evidence, members[0], f"{ALIGNED}_{score}")


def _read(evidence: Evidence, index: int, score: str) -> Figure:
    mean, low, high = (float(evidence.means[score + end].iloc[index]) for end in ("", LOW, HIGH))
    return Figure(mean, low, high)


def _averages(
    evidence: Evidence, rows: Sequence[Sequence[int]], ratios: Sequence[float], scores: Sequence[str]
) -> dict[tuple[int, str], Figure]:
    """Return the mean over the ratios, of rows that have all of them; seeds and prompts are those of every ratio."""
    panels = {}
    for number, members in enumerate(rows):
        found = [evidence.lines[index] for index in members]
        if sorted(float(line.names["ratio"]) for line in found) != list(ratios):
            continue
        for score in scores:
            if (panel := _over_ratios(found, score, evidence)) is not None:
                panels[number, score] = panel
    return {
        place: Figure(100 * estimate.mean, 100 * estimate.low, 100 * estimate.high)
        for place, estimate in zip(panels, estimates(list(panels.values())), strict=True)
    }


def _over_ratios(lines: Sequence[Condition], score: str, evidence: Evidence) -> NDArray[Any] | None:
    """Return the verdicts averaged over lines with the same seeds and as many prompts.

    An answer that could not be judged at one ratio counts there as the mean of its seed, so that the average is that of
    the ratios' own scores; it is missing only if it could be judged at none.
    """
    import numpy as np

    panels = [panel(line, score, evidence.grades) for line in lines]
    seeds = {panel.seeds for panel in panels}
    if len(seeds) != 1 or not panels[0].seeds or len({panel.values.shape for panel in panels}) != 1:
        return None
    values = np.stack([panel.values for panel in panels])
    holes = np.isnan(values)
    filled = np.where(holes, np.nanmean(values, axis=2, keepdims=True), values).mean(axis=0)
    averaged: NDArray[Any] = np.where(holes.all(axis=0), np.nan, filled)
    return averaged
