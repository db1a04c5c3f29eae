"""The columns that are read from a source: what their cells must be, and what they mean.

A cell that is not what its column is for is refused with source, row and column. A model that is trained or scored on
an empty text, or a truth value that is true because it is written in letters, is a wrong number without a word.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, Protocol

from harness.corpora.examples import Example
from harness.corpora.sources import Source
from harness.errors import DataError, Problem

Cell = Callable[[object], Any]
"""Reads one cell, or raises ``ValueError`` with what it is and what was expected."""


class Rows(Protocol):
    """Frozen settings that read rows of a source."""

    def __hash__(self) -> int:
        """Settings are frozen, so that what was found out about their rows can be remembered."""
        ...

    def examples(self) -> list[Example]:
        """Read them."""
        ...


def columns(
    source: Source, cells: Mapping[str, Cell], *, optional: Mapping[str, Cell] | None = None, limit: int | None = None
) -> list[tuple[Any, ...]]:
    """Return the named columns of a source's rows, in the rows' published order.

    Args:
        source: where the rows are.
        cells: how the cells of each column are read.
        optional: the same of columns that a row may lack; None stands for what is lacking.
        limit: read the first rows only.

    Raises:
        DataError: the rows cannot be read, one lacks a column, or a cell is not what its column is for.
    """
    rows = []
    for number, row in enumerate(islice(source.records(), limit), start=1):
        if not row.keys() >= set(cells):
            raise DataError(
                f"`{source.id}`: row {number} has the columns {', '.join(row) or 'none'}; expected {', '.join(cells)}. "
                "Choose another source, or correct the `columns` of this one in its sources file"
            )
        here = {**cells, **{name: read for name, read in (optional or {}).items() if name in row}}
        found = {name: _cell(source, number, name, row[name], read) for name, read in here.items()}
        rows.append(tuple(found.get(name) for name in (*cells, *(optional or ()))))
    return rows


def _cell(source: Source, number: int, name: str, value: object, read: Cell) -> Any:
    try:
        return read(value)
    except ValueError as error:
        raise DataError(
            f"`{source.id}`: row {number}, column `{name}`: {error}. Correct the row in {source.file}, or leave it out"
        ) from None


def unreadable(source: Source, rows: Rows) -> list[Problem]:
    """Return why rows could not be read; those that are on this machine are read to find out."""
    problems = source.preflight()
    if problems or not source.at_hand():
        return problems
    # Known content gives the same rows for every stage of a plan: it is read once.
    pinned = source.sha256 is not None or source.repo is not None
    return list(_problems(rows) if pinned else _problems.__wrapped__(rows))


@lru_cache(maxsize=64)
def _problems(rows: Rows) -> tuple[Problem, ...]:
    try:
        rows.examples()
    except DataError as error:
        return (Problem("", str(error)),)
    return ()


def answer(value: object) -> str:
    """Read a text that may be empty."""
    if not isinstance(value, str):
        raise ValueError(f"{_shown(value)} is no text but of the type {type(value).__name__}; expected a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text holds the lone surrogate U+{ord(value[error.start]):04X} at character {error.start + 1}, half "
            "of a character; expected Unicode text"
        ) from None
    return value


def text(value: object) -> str:
    """Read a text that says something: a prompt of a model."""
    found = answer(value)
    if not found.strip():
        raise ValueError("the text is empty; expected some")
    return found


def truth(value: object) -> bool:
    """Read a truth value: true or false in any case, 1 or 0."""
    written = value if isinstance(value, str) else ""
    if isinstance(value, bool | int | float):
        written = str(int(value)) if value in (0, 1) else ""  # NaN is neither
    known = _TRUTHS.get(written.lower())
    if known is None:
        raise ValueError(f"{_shown(value)} is no truth value; expected true, false, 1 or 0")
    return known


def class_of(classes: Sequence[str]) -> Cell:
    """Return what reads a label, which counts from 0, as the name of its class."""
    known = {str(index): name for index, name in enumerate(classes)}

    def read(value: object) -> str:
        # A column of whole numbers with a gap is one of floating-point numbers.
        written = int(value) if isinstance(value, float) and value.is_integer() else value
        if str(written) not in known:
            raise ValueError(
                f"{_shown(value)} is no label; expected 0 to {len(classes) - 1} ({', '.join(classes)}). A split "
                "without labels cannot be used here"
            )
        return known[str(written)]

    return read


def _shown(value: object) -> str:
    if value is None:
        return "nothing (null)"
    if isinstance(value, str):
        return f"`{value[:40]}`" if value else "an empty text"
    return f"`{str(value)[:40]}`"


_TRUTHS = {"true": True, "false": False, "1": True, "0": False}
