"""Summary: the mean of every score over the replicates of a condition, with its interval."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.report.data.columns import COUNTS, GRADINGS, KEY_PREFIX, LABELS, MISSING, SCORES, swept_in
from harness.report.data.comparability import protocol_differences
from harness.report.data.conditions import Condition, conditions_of
from harness.report.data.scores import Graded
from harness.report.data.tidy import frame_of
from harness.report.stats.interval import estimates

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandas import DataFrame

LOW = "_low"
"""The suffix of the columns that hold the lower end of an interval; empty below two measurements."""
HIGH = "_high"
"""The suffix of the columns that hold the upper end."""
SIZE = "_n"
"""The suffix of the columns that count the measurements in a mean."""
NOTE = "note"
"""The column that says how a line was trained or evaluated otherwise than its neighbours; empty for most."""


class Panel(NamedTuple):
    """The verdicts behind one score of a line.

    Attributes:
        seeds: that were measured; a grade that several seeds share is there once, under the first of them.
        values: ``[seeds, prompts]``, as shares; one column, the scores of the seeds, where the store has no verdicts
            on single prompts.
        mean: of the seeds' scores, in percent, as they were stored.
    """

    seeds: tuple[Hashable, ...]
    values: NDArray[Any]
    mean: float


def panel(condition: Condition, score: str, grades: Mapping[str, Graded]) -> Panel:
    """Return the verdicts behind a score of a condition; without seeds where there are none."""
    import numpy as np

    grading = next(grading for grading in GRADINGS if score in (grading.score, grading.score_plus))
    measured = _distinct([cell for cell in condition.cells if cell[score] == cell[score]], KEY_PREFIX + grading.stage)
    seeds = tuple(cell["seed"] for cell in measured)
    scores = [float(cell[score]) for cell in measured]
    mean = sum(scores) / len(scores) if scores else float("nan")
    verdicts = [_verdicts(grades, cell.get(KEY_PREFIX + grading.stage), score) for cell in measured]
    known = [values for values in verdicts if values is not None]
    if len(known) == len(measured) > 0 and len({len(values) for values in known}) == 1:
        return Panel(seeds, np.stack(known), mean)
    return Panel(seeds, np.array(scores).reshape(-1, 1) / 100, mean)


def summarise(rows: DataFrame, grades: Mapping[str, Graded] | None = None) -> DataFrame:
    """Return the mean of every score and its interval, one line per labels, swept values and protocol.

    Rows with different protocols are never in one mean: they make separate lines, and ``note`` names the settings in
    which a line departs from the protocol that most rows of the same task and model share.

    Columns: the labels without the seed, the swept values, ``seeds`` (how many have a result) and ``missing`` (how many
    have none or not all), every score as a mean with ``<score>_low``, ``<score>_high`` and ``<score>_n``, summed
    counts, ``protocol`` and ``note``. A grade that several seeds share is one measurement, so ``<score>_n`` can be
    less than ``seeds``.

    Args:
        rows: what ``load_rows`` returned.
        grades: what ``read_grades`` returned; without it, and where a grade has no verdicts on single prompts,
            intervals are over seeds alone.
    """
    lines = conditions_of(rows)
    notes = protocol_differences(rows)
    measured = {
        (index, score): found
        for index, line in enumerate(lines)
        for score in SCORES
        if (found := panel(line, score, grades or {})).seeds
    }
    estimated = dict(zip(measured, estimates([each.values for each in measured.values()]), strict=True))
    described = []
    for index, line in enumerate(lines):
        finished = {cell["seed"] for cell in line.cells if any(cell[score] == cell[score] for score in SCORES)}
        told: dict[str, Any] = {
            **line.names,
            "seeds": len(finished),
            MISSING: sum(cell[MISSING] != "" for cell in line.cells),
            NOTE: notes[str(line.names["task"]), str(line.names["model"]), str(line.names["protocol"])],
        }
        for score in SCORES:
            estimate = estimated.get((index, score))
            told[score + SIZE] = len(measured[index, score].seeds) if estimate else 0
            if estimate:
                ends = {score + LOW: 100 * estimate.low, score + HIGH: 100 * estimate.high}
                told |= {score: measured[index, score].mean, **ends}
        described.append(told | _counts(line.cells))
    statistics = [name for score in SCORES for name in (score, score + LOW, score + HIGH, score + SIZE)]
    named = [name for name in (*LABELS, *swept_in(rows)) if name != "seed"]
    table = frame_of(described, [*named, "seeds", MISSING, *statistics, *COUNTS, "protocol", NOTE])
    return table.astype({name: "float64" for name in statistics if not name.endswith(SIZE)})


def _distinct(cells: Sequence[Mapping[str, Any]], key: str) -> list[Mapping[str, Any]]:
    """Return the cells without those whose grade is another one's."""
    return list({cell.get(key) or id(cell): cell for cell in reversed(cells)}.values())[::-1]


def _verdicts(grades: Mapping[str, Graded], key: str | None, score: str) -> NDArray[Any] | None:
    return grades[key].of(score) if key in grades and key is not None else None


def _counts(cells: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    counts = {}
    for grading in GRADINGS:
        measured = _distinct(cells, KEY_PREFIX + grading.stage)
        for name in (name for name in COUNTS if name.startswith(f"{grading.score}_")):
            counts[name] = sum(int(cell[name]) for cell in measured if isinstance(cell[name], int))
    return counts
