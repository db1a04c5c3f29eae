"""Reader versions: whether a file gives different rows with the current reader than with the first one.

The reader version is part of a source's identity, so that artifacts made with the first reader are not reused where the
rows differ.
"""

import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.corpora.formats import Format, open_text, read
from harness.errors import DataError

SECOND = 2
"""A byte-order mark is removed, and booleans may be strings: the first reader read ``"False"`` as true."""
_TABLES = (Format.CSV, Format.TSV)
_TYPED = (Format.JSON, Format.JSONL, Format.PARQUET)
"""Formats with a boolean type; files that use it give the same rows with both readers."""
_TRUTHS = ("is_safe", "category")
"""Columns with booleans; ``category`` is a mapping with one for each name."""


def reading_of(form: Format, path: Path | None, *, published: bool) -> int | None:
    """Return the reader version of a file; None is the first version, which adds nothing to a key.

    Args:
        form: the file format.
        path: the file in the user's data folder; None if it is missing or on the Hub. Its content is then unknown, and
            its booleans are assumed to be strings.
        published: whether the content is that of a pinned source of the shipped catalogue, in which all booleans have
            the format's type.
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
    del size, modified  # only part of the cache key, so that a changed file is read again
    try:
        rows = read(path, form) if _may_hold_truths(path, form) else []
    except (DataError, OSError, ValueError, EOFError, zlib.error):
        return True  # the error is reported when the rows are read
    return all(_typed(value) for row in rows for value in _truths(row))


def _may_hold_truths(path: Path, form: Format) -> bool:
    """Return whether a file has such a column; most have none and are not parsed when a sweep is planned."""
    if form is Format.PARQUET:
        from pyarrow.parquet import read_schema

        return not set(_TRUTHS).isdisjoint(read_schema(path).names)
    with open_text(path) as stream:
        content = stream.read()
    return any(f'"{name}"' in content for name in _TRUTHS)


def _truths(row: dict[str, Any]) -> list[object]:
    marks = row.get("category")
    named = [value for value in marks.values() if value is not None] if isinstance(marks, dict) else []
    return [*named, *([row["is_safe"]] if "is_safe" in row else [])]


def _typed(value: object) -> bool:
    return isinstance(value, bool | int | float) and value in (0, 1)
