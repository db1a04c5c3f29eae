"""Readings: which files once gave other rows than they give now. The difference is part of a source's identity.

An artifact that was made from the first reading of such a file is then not taken for one of the second.
"""

import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.corpora.formats import Format, opened, read
from harness.errors import DataError

SECOND = 2
"""A byte-order mark is left out, and a truth value may be written in letters: ``"False"`` was true."""
_TABLES = (Format.CSV, Format.TSV)
_TYPED = (Format.JSON, Format.JSONL, Format.PARQUET)
"""Formats with truth values of their own; only where a file does not use them did it give other rows."""
_TRUTHS = ("is_safe", "category")
"""The columns that hold truth values; a category is a mapping with one for each name."""


def reading_of(form: Format, path: Path | None, *, published: bool) -> int | None:
    """Return which reading of a file gives its rows; None is the first, which adds nothing to a key.

    Args:
        form: its layout.
        path: where it lies below the user's data folder; None for one that is not there, be it missing or of the Hub.
            It cannot be looked into, so it counts as one whose truth values might be written in letters.
        published: whether its content is that of a pinned source of the shipped catalogue. In these, all truth values
            are the format's own.
    """
    if form in _TABLES:
        return SECOND
    if form not in _TYPED or published:
        return None
    if path is None:
        return SECOND
    state = path.stat()
    return None if _truths_are_typed(path, form, state.st_size, state.st_mtime_ns) else SECOND


@lru_cache(maxsize=64)
def _truths_are_typed(path: Path, form: Format, size: int, modified: int) -> bool:
    del size, modified  # part of the cache key only: an altered file is read again
    try:
        rows = read(path, form) if _may_hold_truths(path, form) else []
    except (DataError, OSError, ValueError, EOFError, zlib.error):
        return True  # the reason is reported where the rows are needed
    return all(_typed(value) for row in rows for value in _truths(row))


def _may_hold_truths(path: Path, form: Format) -> bool:
    """Whether a file has such a column at all: most have none, and need not be parsed to plan a sweep."""
    if form is Format.PARQUET:
        from pyarrow.parquet import read_schema

        return not set(_TRUTHS).isdisjoint(read_schema(path).names)
    with opened(path) as stream:
        content = stream.read()
    return any(f'"{name}"' in content for name in _TRUTHS)


def _truths(row: dict[str, Any]) -> list[object]:
    marks = row.get("category")
    named = [value for value in marks.values() if value is not None] if isinstance(marks, dict) else []
    return [*named, *([row["is_safe"]] if "is_safe" in row else [])]


def _typed(value: object) -> bool:
    return isinstance(value, bool | int | float) and value in (0, 1)
