"""The columns of tidy rows: what they are called, and which of them hold what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from harness.report.data.targets import COLUMNS

if TYPE_CHECKING:
    from pandas import DataFrame

LABELS = ("defense", "task", "attack", "ratio", "model", "seed")
"""What names a cell, beside the values that a sweep varies."""
KEY_PREFIX = "key."
"""Columns ``key.<stage>`` hold the keys of a cell's stages."""
PROTOCOL_PREFIX = "protocol."
"""Columns ``protocol.<setting>`` hold how a cell was evaluated and trained; ``protocol`` is their hash."""
CATEGORY_PREFIX = "category."
"""Columns ``category.<name>`` hold the harmful score of one category, in percent."""
MISSING = "missing"
"""The column that names the grades that are not in the store, joined by commas; empty where nothing is missing."""
NOTES = "notes"
"""The column of what must be known of a single row: a damaged grade, dropped rows, a retry with fewer rows at once."""
SECONDS = "seconds"
"""The column of the wall seconds of all stages of a cell, shared ones in full; empty while one is missing."""
PREDICTED = "predicted_seconds"
"""The column of what those seconds were predicted to be."""


class Grading(NamedTuple):
    """One grading of a cell and the columns it fills.

    Attributes:
        stage: the name of the grading among the keys of a cell.
        score: the column of the score, in percent; ``<score>_count`` and ``<score>_unjudged`` are beside it.
        score_plus: the column of the score under the coherence rule, in percent, where there is one.
    """

    stage: str
    score: str
    score_plus: str | None = None


GRADINGS = (
    Grading("harm", "hs", "hs_plus"),
    Grading("accuracy", "fa"),
    Grading("aligned_harm", "aligned_hs", "aligned_hs_plus"),
    Grading("aligned_accuracy", "aligned_fa"),
)
SCORES = tuple(name for grading in GRADINGS for name in (grading.score, grading.score_plus) if name is not None)
"""The columns of scores, in percent."""
COUNTS = tuple(f"{grading.score}_{what}" for grading in GRADINGS for what in ("count", "unjudged"))
"""The columns that count answers: all of them, and those that no judge could grade (they are in no score)."""


def lacks(found: Any) -> bool:
    """Return whether what stands in a row is nothing: None, NaN, or what pandas has beside whole numbers."""
    import pandas as pd

    return bool(pd.isna(found))


def swept_in(rows: DataFrame) -> list[str]:
    """Return the columns of values that the sweep varies."""
    fixed = {*LABELS, *SCORES, *COUNTS, *COLUMNS, MISSING, NOTES, SECONDS, PREDICTED, "protocol"}
    prefixes = (KEY_PREFIX, PROTOCOL_PREFIX, CATEGORY_PREFIX)
    return [name for name in rows.columns if name not in fixed and not name.startswith(prefixes)]


def protocol_in(rows: DataFrame) -> list[str]:
    """Return the columns of settings that decide whether rows can be compared."""
    return [name for name in rows.columns if name.startswith(PROTOCOL_PREFIX)]


def records(frame: DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame by column; None for a whole number that a row lacks, NaN for another."""
    import pandas as pd

    return [
        {str(name): None if found is pd.NA else found for name, found in row.items()}
        for row in frame.to_dict(orient="records")
    ]


def value(found: Any) -> str:
    """Return a label or a swept value as text; a dash for what a cell lacks."""
    if lacks(found):
        return "-"
    return f"{found:g}" if isinstance(found, float) else str(found)
