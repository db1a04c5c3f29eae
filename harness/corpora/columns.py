"""Reading and validating the columns of a source.

An invalid cell is rejected with source, row and column: training or scoring on an empty text, or reading the string
"False" as true, would silently give wrong numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, Protocol

from harness.corpora.examples import Example
from harness.corpora.sources import Source
from harness.errors import DataError, Problem

Cell = Callable[[object], Any]
"""Parses one cell, or raises ``ValueError`` with its value and what was expected."""


class Rows(Protocol):
    """Frozen settings that read rows of a source."""

    def __hash__(self) -> int:
        """Hashable, so that the result of a check can be cached."""
        ...

    def examples(self) -> list[Example]:
        """Read the examples."""
        ...


def columns(
    source: Source, cells: Mapping[str, Cell], *, optional: Mapping[str, Cell] | None = None, limit: int | None = None
) -> list[tuple[Any, ...]]:
    """Return the parsed columns of a source's rows, in their published order.

    Args:
        source: the source.
        cells: the parser of each required column.
        optional: the parser of each optional column; a missing cell is None.
        limit: read only the first ``limit`` rows; None reads all.

    Raises:
        DataError: the source cannot be read, a row lacks a column, or a cell is invalid.
    """
    rows = []
    for number, row in enumerate(islice(source.records(), limit), start=1):
        if not row.keys() >= set(cells):
            raise DataError(
                f"`{source.id}`: row {number} has the columns {', '.join(row) or 'none'}; expected {', '.join(cells)}. "
                "Choose another source, or correct the `columns` of this one in its sources file"
            )
        present = {**cells, **{name: read for name, read in (optional or {}).items() if name in row}}
        found = {name: _cell(source, number, name, row[name], read) for name, read in present.items()}
        rows.append(tuple(found.get(name) for name in (*cells, *(optional or ()))))
    return rows


def _cell(source: Source, number: int, name: str, value: object, read: Cell) -> Any:
    try:
        return read(value)
    except ValueError as error:
        raise DataError(
            f"`{source.id}`: row {number}, column `{name}`: {error}. Correct the row in {source.file}, or remove it"
        ) from None


def labelled_examples(
    source: Source, column: str, classes: Sequence[str], *, instruction: str, limit: int | None
) -> list[Example]:
    """Return the examples of a classification dataset: a text column as input, the class name as target.

    Args:
        source: the source, with the text column and a column ``label``.
        column: name of the text column.
        classes: class names, ordered by label.
        instruction: the instruction of every example.
        limit: read only the first ``limit`` rows; None reads all.

    Raises:
        DataError: the source cannot be read, or lacks a column.
    """
    rows = columns(source, {column: text, "label": class_of(classes)}, limit=limit)
    return [Example(instruction=instruction, input=cell, output=name) for cell, name in rows]


def unreadable(source: Source, rows: Rows) -> list[Problem]:
    """Return why the rows cannot be read; a source that is on this machine is read as a check."""
    problems = source.preflight()
    if problems or not source.at_hand():
        return problems
    # Pinned content cannot change, so its check is cached for all stages of a plan.
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
    """Parse a text that may be empty."""
    if not isinstance(value, str):
        raise ValueError(f"{_shown(value)} is not a text but has the type {type(value).__name__}; expected a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text contains the lone surrogate U+{ord(value[error.start]):04X} at character {error.start + 1}; "
            "expected valid Unicode text"
        ) from None
    return value


def text(value: object) -> str:
    """Parse a text that must not be blank, such as a prompt."""
    found = answer(value)
    if not found.strip():
        raise ValueError("the text is empty; expected a non-empty text")
    return found


def truth(value: object) -> bool:
    """Parse a boolean: true or false in any case, 1 or 0."""
    written = value if isinstance(value, str) else ""
    if isinstance(value, bool | int | float):
        written = str(int(value)) if value in (0, 1) else ""  # NaN is neither
    known = _TRUTHS.get(written.lower())
    if known is None:
        raise ValueError(f"{_shown(value)} is not a boolean; expected true, false, 1 or 0")
    return known


def class_of(classes: Sequence[str]) -> Cell:
    """Return a parser from an integer label, counted from 0, to its class name."""
    known = {str(index): name for index, name in enumerate(classes)}

    def read(value: object) -> str:
        # A column of integers with a missing value is read as floating-point numbers.
        written = int(value) if isinstance(value, float) and value.is_integer() else value
        if str(written) not in known:
            raise ValueError(
                f"{_shown(value)} is not a label; expected 0 to {len(classes) - 1} ({', '.join(classes)}). A split "
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
