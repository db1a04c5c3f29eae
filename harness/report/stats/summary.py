"""Lines: the cells that differ in nothing but their seed, and the mean of their scores with its interval."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.report.data.comparability import protocol_differences
from harness.report.data.scores import Graded
from harness.report.data.tidy import COUNTS, GRADINGS, KEY_PREFIX, LABELS, MISSING, SCORES, frame_of, swept_in
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


class Line(NamedTuple):
    """Cells that differ in nothing but their seed.

    Attributes:
        names: labels without the seed, swept values and ``protocol``.
        cells: their tidy rows, by column.
    """

    names: Mapping[str, Any]
    cells: Sequence[Mapping[str, Any]]

    def panel(self, score: str, grades: Mapping[str, Graded]) -> Panel:
        """Return the verdicts behind a score; without seeds where there are none."""
        import numpy as np

        grading = next(grading for grading in GRADINGS if score in (grading.score, grading.score_plus))
        measured = _distinct([cell for cell in self.cells if cell[score] == cell[score]], KEY_PREFIX + grading.stage)
        seeds = tuple(cell["seed"] for cell in measured)
        scores = [float(cell[score]) for cell in measured]
        mean = sum(scores) / len(scores) if scores else float("nan")
        verdicts = [_verdicts(grades, cell.get(KEY_PREFIX + grading.stage), score) for cell in measured]
        known = [values for values in verdicts if values is not None]
        if len(known) == len(measured) > 0 and len({len(values) for values in known}) == 1:
            return Panel(seeds, np.stack(known), mean)
        return Panel(seeds, np.array(scores).reshape(-1, 1) / 100, mean)


def telling(rows: DataFrame) -> list[str]:
    """Return the columns that tell one line from another: everything that names a cell but its seed."""
    return [*(name for name in LABELS if name != "seed"), *swept_in(rows), "protocol"]


def lines_of(rows: DataFrame) -> list[Line]:
    """Return the lines of a sweep, in the order in which its cells come. Rows with different protocols are different.

    Args:
        rows: what ``load_rows`` returned.
    """
    by = telling(rows)
    keys = [name for name in rows.columns if name.startswith(KEY_PREFIX)]
    lines: dict[tuple[str, ...], Line] = {}
    seen = set()
    for cell in records(rows):
        if (same := tuple(str(cell[name]) for name in (*by, "seed", *keys))) not in seen:
            seen.add(same)
            names = {name: cell[name] for name in by}
            line = lines.setdefault(tuple(str(found) for found in names.values()), Line(names, []))
            assert isinstance(line.cells, list)
            line.cells.append(cell)
    return list(lines.values())


def records(frame: DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame by column; None for a whole number that a row lacks, NaN for another."""
    import pandas as pd

    return [
        {str(name): None if found is pd.NA else found for name, found in row.items()}
        for row in frame.to_dict(orient="records")
    ]


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
    lines = lines_of(rows)
    notes = protocol_differences(rows)
    measured = {
        (index, score): panel
        for index, line in enumerate(lines)
        for score in SCORES
        if (panel := line.panel(score, grades or {})).seeds
    }
    found = dict(zip(measured, estimates([panel.values for panel in measured.values()]), strict=True))
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
            estimate = found.get((index, score))
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
