"""Names and meaning of the columns of tidy rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from harness.report.data.targets import COLUMNS

if TYPE_CHECKING:
    from pandas import DataFrame

LABELS = ("defense", "task", "attack", "ratio", "model", "seed")
"""Labels of a cell; swept values are further columns."""
KEY_PREFIX = "key."
"""Columns ``key.<stage>`` hold the keys of a cell's stages."""
PROTOCOL_PREFIX = "protocol."
"""Columns ``protocol.<setting>`` hold a cell's training and evaluation protocol; ``protocol`` is their hash."""
CATEGORY_PREFIX = "category."
"""Columns ``category.<name>`` hold the harmful score of one category, in percent."""
SHARE_PREFIX = "share."
"""Columns ``share.<name>`` hold a fact of one of the cell's stages, in percent (``Stage.reported_shares``)."""
MISSING = "missing"
"""Column with the grades that are not in the store, joined by commas; empty if none is missing."""
NOTES = "notes"
"""Column with notes on a single row: a damaged grade, dropped examples, a retry with smaller micro-batches."""
SECONDS = "seconds"
"""Column with the wall time in seconds of all stages of a cell, shared ones in full; empty while one is missing."""
PREDICTED = "predicted_seconds"
"""Column with the predicted wall time in seconds."""


class Grading(NamedTuple):
    """One grading of a cell and the columns it fills.

    Attributes:
        stage: name of the grading among the keys of a cell.
        score: column of the score, in percent; its counts are in ``<score>_count`` and ``<score>_unjudged``.
        score_plus: column of the score under the coherence rule, in percent, if there is one.
    """

    stage: str
    score: str
    score_plus: str | None = None


GRADINGS = (
    Grading("harm", "hs", "hs_plus"),
    Grading("accuracy", "fa"),
    Grading("over_refusal", "over_refusal"),
    Grading("aligned_harm", "aligned_hs", "aligned_hs_plus"),
    Grading("aligned_accuracy", "aligned_fa"),
    Grading("aligned_over_refusal", "aligned_over_refusal"),
)
SCORES = tuple(name for grading in GRADINGS for name in (grading.score, grading.score_plus) if name is not None)
"""The columns of scores, in percent."""
COUNTS = tuple(f"{grading.score}_{what}" for grading in GRADINGS for what in ("count", "unjudged"))
"""Columns with the number of generations, and of those that could not be judged and are excluded from the score."""


def grading_of(score: str) -> Grading:
    """Return the grading that fills a column of scores."""
    return next(grading for grading in GRADINGS if score in (grading.score, grading.score_plus))


def lacks(found: Any) -> bool:
    """Return whether a value is missing: None, NaN or ``pandas.NA``."""
    import pandas as pd

    return bool(pd.isna(found))


def swept_in(rows: DataFrame) -> list[str]:
    """Return the columns of swept values."""
    fixed = {*LABELS, *SCORES, *COUNTS, *COLUMNS, MISSING, NOTES, SECONDS, PREDICTED, "protocol"}
    prefixes = (KEY_PREFIX, PROTOCOL_PREFIX, CATEGORY_PREFIX, SHARE_PREFIX)
    return [name for name in rows.columns if name not in fixed and not name.startswith(prefixes)]


def shares_in(rows: DataFrame) -> list[str]:
    """Return the columns of shares that stages report."""
    return [name for name in rows.columns if name.startswith(SHARE_PREFIX)]


def protocol_in(rows: DataFrame) -> list[str]:
    """Return the columns of the protocol, which decides whether rows are comparable."""
    return [name for name in rows.columns if name.startswith(PROTOCOL_PREFIX)]


def records(frame: DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame as dictionaries; a missing integer is None, another missing number NaN."""
    import pandas as pd

    return [
        {str(name): None if found is pd.NA else found for name, found in row.items()}
        for row in frame.to_dict(orient="records")
    ]


def value(found: Any) -> str:
    """Return a label or a swept value as text; a dash if it is missing."""
    if lacks(found):
        return "-"
    return f"{found:g}" if isinstance(found, float) else str(found)
