"""Summary: the mean of each score over the replicates of a condition, with its interval."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.report.data.columns import (
    COUNTS,
    GRADINGS,
    KEY_PREFIX,
    LABELS,
    MISSING,
    SCORES,
    grading_of,
    lacks,
    shares_in,
    swept_in,
)
from harness.report.data.comparability import protocol_differences
from harness.report.data.conditions import Condition, conditions_of
from harness.report.data.scores import Graded
from harness.report.data.tidy import frame_of
from harness.report.stats.interval import estimates

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandas import DataFrame

LOW = "_low"
"""Suffix of the columns with the lower end of an interval; empty below two measurements."""
HIGH = "_high"
"""Suffix of the columns with the upper end."""
SIZE = "_n"
"""Suffix of the columns with the number of measurements."""
NOTE = "note"
"""Column with the differences from the most common protocol; empty for most conditions."""


class Panel(NamedTuple):
    """The verdicts behind one score of a condition.

    Attributes:
        seeds: the measured seeds; of seeds that share a grade, only the first.
        grades: what identifies the grade of each of these seeds.
        values: ``[seeds, prompts]``, as fractions; a single column with the scores of the seeds if the store has no
            verdicts per prompt.
        mean: mean of the stored scores of the seeds, in percent.
    """

    seeds: tuple[Hashable, ...]
    grades: tuple[Hashable, ...]
    values: NDArray[Any]
    mean: float


def panel(condition: Condition, score: str, grades: Mapping[str, Graded]) -> Panel:
    """Return the verdicts of a condition for a score; without seeds if there are none."""
    import numpy as np

    key = KEY_PREFIX + grading_of(score).stage
    measured = _distinct([cell for cell in condition.cells if cell[score] == cell[score]], key)
    seeds = tuple(cell["seed"] for cell in measured)
    identities = tuple(_identity(cell, key) for cell in measured)
    scores = [float(cell[score]) for cell in measured]
    mean = sum(scores) / len(scores) if scores else float("nan")
    verdicts = [_verdicts(grades, cell.get(key), score) for cell in measured]
    known = [values for values in verdicts if values is not None]
    if len(known) == len(measured) > 0 and len({len(values) for values in known}) == 1:
        return Panel(seeds, identities, np.stack(known), mean)
    return Panel(seeds, identities, np.array(scores).reshape(-1, 1) / 100, mean)


def summarise(rows: DataFrame, grades: Mapping[str, Graded] | None = None) -> DataFrame:
    """Return the mean of each score and its interval, one row per condition.

    Rows with different protocols are never averaged: they are separate conditions, and ``note`` lists the settings in
    which a condition differs from the most common protocol of its task and model.

    Columns: the labels without the seed, the swept values, ``seeds`` (number of seeds with a result), ``missing``
    (number of seeds with missing results), each score as a mean with ``<score>_low``, ``<score>_high`` and
    ``<score>_n``, summed counts, the means of the shares that stages report, ``protocol`` and ``note``. A grade that
    several seeds share is one measurement, so ``<score>_n`` can be less than ``seeds``.

    Args:
        rows: as returned by ``load_rows``.
        grades: as returned by ``read_grades``; without them, and for grades without verdicts per prompt, intervals are
            over seeds only.
    """
    conditions = conditions_of(rows)
    notes = protocol_differences(rows)
    measured = {
        (index, score): found
        for index, condition in enumerate(conditions)
        for score in SCORES
        if (found := panel(condition, score, grades or {})).seeds
    }
    estimated = dict(zip(measured, estimates([each.values for each in measured.values()]), strict=True))
    described = []
    for index, condition in enumerate(conditions):
        finished = {cell["seed"] for cell in condition.cells if any(cell[score] == cell[score] for score in SCORES)}
        row: dict[str, Any] = {
            **condition.names,
            "seeds": len(finished),
            MISSING: sum(cell[MISSING] != "" for cell in condition.cells),
            NOTE: notes[str(condition.names["task"]), str(condition.names["model"]), str(condition.names["protocol"])],
        }
        for score in SCORES:
            estimate = estimated.get((index, score))
            row[score + SIZE] = len(measured[index, score].seeds) if estimate else 0
            if estimate:
                ends = {score + LOW: 100 * estimate.low, score + HIGH: 100 * estimate.high}
                row |= {score: measured[index, score].mean, **ends}
        described.append(row | _counts(condition.cells) | _means(condition.cells, shares_in(rows)))
    statistics = [name for score in SCORES for name in (score, score + LOW, score + HIGH, score + SIZE)]
    named = [name for name in (*LABELS, *swept_in(rows)) if name != "seed"]
    table = frame_of(described, [*named, "seeds", MISSING, *statistics, *COUNTS, *shares_in(rows), "protocol", NOTE])
    numbers = [*(name for name in statistics if not name.endswith(SIZE)), *shares_in(rows)]
    return table.astype(dict.fromkeys(numbers, "float64"))


def _distinct(cells: Sequence[Mapping[str, Any]], key: str) -> list[Mapping[str, Any]]:
    """Return the cells with distinct grades."""
    return list({_identity(cell, key): cell for cell in reversed(cells)}.values())[::-1]


def _identity(cell: Mapping[str, Any], key: str) -> Hashable:
    """Return the key of a cell's grade; without one, what no other cell has."""
    return cell.get(key) or id(cell)


def _verdicts(grades: Mapping[str, Graded], key: str | None, score: str) -> NDArray[Any] | None:
    return grades[key].of(score) if key in grades and key is not None else None


def _means(cells: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> dict[str, float | None]:
    """Return the mean of each column over the cells that have a value."""
    means: dict[str, float | None] = {}
    for name in columns:
        found = [cell[name] for cell in cells if not lacks(cell[name])]
        means[name] = sum(found) / len(found) if found else None
    return means


def _counts(cells: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    counts = {}
    for grading in GRADINGS:
        measured = _distinct(cells, KEY_PREFIX + grading.stage)
        for name in (name for name in COUNTS if name.startswith(f"{grading.score}_")):
            counts[name] = sum(int(cell[name]) for cell in measured if isinstance(cell[name], int))
    return counts
