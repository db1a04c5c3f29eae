"""Lines: the cells that differ in nothing but their seed, and the mean of their scores with its interval."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.report.comparability import departures
from harness.report.grades import Graded
from harness.report.interval import estimates
from harness.report.rows import COUNTS, GRADINGS, KEY_PREFIX, LABELS, MISSING, SCORES, swept_in

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
        rows: their tidy rows.
    """

    names: Mapping[str, Any]
    rows: DataFrame

    def panel(self, score: str, grades: Mapping[str, Graded]) -> Panel:
        """Return the verdicts behind a score; without rows where there are none."""
        import numpy as np

        grading = next(grading for grading in GRADINGS if score in (grading.score, grading.score_plus))
        key = KEY_PREFIX + grading.stage
        measured = self.rows[self.rows[score].notna()]
        if key in measured:
            measured = measured.drop_duplicates(subset=[key])
            verdicts = [values for found in measured[key] if (values := _verdicts(grades, found, score)) is not None]
            if len(verdicts) == len(measured) > 0 and len({len(values) for values in verdicts}) == 1:
                return Panel(tuple(measured["seed"]), np.stack(verdicts), float(measured[score].mean()))
        shares = measured[[score]].to_numpy(dtype="float64") / 100
        return Panel(tuple(measured["seed"]), shares, float(measured[score].mean()))


def lines_of(rows: DataFrame) -> list[Line]:
    """Return the lines of a sweep, in the order in which its cells come. Rows with different protocols are different.

    Args:
        rows: what ``load_rows`` returned.
    """
    by = [*(name for name in LABELS if name != "seed"), *swept_in(rows), "protocol"]
    keys = [name for name in rows.columns if name.startswith(KEY_PREFIX)]
    distinct = rows.drop_duplicates(subset=[*by, "seed", *keys])
    return [
        Line(dict(zip(by, names, strict=True)), group)
        for names, group in distinct.groupby(by, sort=False, dropna=False)
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
    import pandas as pd

    lines = lines_of(rows)
    notes = departures(rows)
    measured = {
        (index, score): panel
        for index, line in enumerate(lines)
        for score in SCORES
        if len((panel := line.panel(score, grades or {})).seeds)
    }
    found = dict(zip(measured, estimates([panel.values for panel in measured.values()]), strict=True))
    described = []
    for index, line in enumerate(lines):
        has_result = line.rows[list(SCORES)].notna().any(axis=1)
        cells: dict[str, Any] = {
            **line.names,
            "seeds": int(line.rows.loc[has_result, "seed"].nunique()),
            MISSING: int((line.rows[MISSING] != "").sum()),
            NOTE: notes[line.rows.index[0]],
        }
        for score in SCORES:
            estimate = found.get((index, score))
            cells[score + SIZE] = len(measured[index, score].seeds) if estimate else 0
            if estimate:
                cells |= {
                    score: measured[index, score].mean,
                    score + LOW: 100 * estimate.low,
                    score + HIGH: 100 * estimate.high,
                }
        described.append(cells | _counts(line.rows))
    statistics = [name for score in SCORES for name in (score, score + LOW, score + HIGH, score + SIZE)]
    named = [name for name in (*LABELS, *swept_in(rows)) if name != "seed"]
    table = pd.DataFrame(described, columns=[*named, "seeds", MISSING, *statistics, *COUNTS, "protocol", NOTE])
    return table.astype({name: "float64" for name in statistics if not name.endswith(SIZE)})


def _verdicts(grades: Mapping[str, Graded], key: str, score: str) -> NDArray[Any] | None:
    return grades[key].of(score) if key in grades else None


def _counts(rows: DataFrame) -> dict[str, int]:
    counts = {}
    for grading in GRADINGS:
        key = KEY_PREFIX + grading.stage
        measured = rows.drop_duplicates(subset=[key]) if key in rows else rows
        for name in (name for name in COUNTS if name.startswith(f"{grading.score}_")):
            counts[name] = int(measured[name].sum())
    return counts
