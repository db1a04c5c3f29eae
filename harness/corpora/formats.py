"""Readers of data files: one dictionary per row, keyed by column.

Text is UTF-8. A byte-order mark at the start of a file is removed, blank lines of a table are skipped, and the length
of a field is not limited.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from harness.errors import DataError

_WHOLE = ":int"
"""Suffix of a column that contains integers."""
_LONGEST_FIELD = 2**31 - 1
"""Maximum field length in characters: the largest that the csv module accepts on all platforms."""


class Format(StrEnum):
    """File formats. A file whose name ends in ``.gz`` is decompressed while it is read."""

    JSONL = "jsonl"
    JSON = "json"
    CSV = "csv"
    TSV = "tsv"
    PARQUET = "parquet"
    AGNEWS_CSV = "agnews_csv"
    """The original AG News file (class 1 to 4, title, description), converted to the columns of the Hub's version:
    ``text`` is title and description joined by a space, ``label`` is 0 to 3."""


def read(path: Path, form: Format, columns: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the rows of a file in their published order.

    Args:
        path: the file.
        form: its format.
        columns: column names of a CSV or TSV file without a header; ``label:int`` reads integers.

    Raises:
        DataError: the file does not have the stated format, or no rows.
    """
    try:
        if form is Format.PARQUET:
            rows = _parquet(path)
        else:
            csv.field_size_limit(_LONGEST_FIELD)
            with open_text(path) as stream:
                rows = list(_READERS[form](stream, columns))
        if not rows:
            raise ValueError("it has no rows")
        return rows
    except (ValueError, csv.Error, gzip.BadGzipFile, zlib.error, EOFError, RecursionError) as error:
        reason = _undecodable(path) if isinstance(error, UnicodeDecodeError) else error
        raise DataError(
            f"{path} cannot be read as {form}: {reason}; expected the format stated in its source entry"
        ) from None


def open_text(path: Path) -> IO[str]:
    """Open a text file, decompressed and without its byte-order mark."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _undecodable(path: Path) -> str:
    """Return which line of a file is not UTF-8: the error of a stream counts from the start of a buffer."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"line {number} is not UTF-8 (byte {error.object[error.start]:#04x} at byte {error.start + 1})"
    return "it is not UTF-8"


def _jsonl(stream: IO[str], _: Sequence[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            try:
                row = json.loads(line.rstrip())
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from None
            yield _row(row, f"line {number}")


def _json(stream: IO[str], _: Sequence[str]) -> Iterator[dict[str, Any]]:
    content = json.load(stream)
    if not isinstance(content, list):
        raise ValueError(f"the file contains one {type(content).__name__}, not a list of rows")
    for number, row in enumerate(content, start=1):
        yield _row(row, f"row {number}")


def _csv(stream: IO[str], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    reader = csv.reader(stream, strict=True)
    try:
        yield from _table(reader, columns)
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}, in a row that may have begun before") from None


def _tsv(stream: IO[str], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    yield from _table(csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE), columns)


def _agnews(stream: IO[str], _: Sequence[str]) -> Iterator[dict[str, Any]]:
    for row in _csv(stream, ("label:int", "title", "description")):
        yield {"text": f"{row['title']} {row['description']}", "label": row["label"] - 1}


def _parquet(path: Path) -> list[dict[str, Any]]:
    import pandas

    rows = pandas.read_parquet(path).to_dict(orient="records")
    return [{str(column): value for column, value in row.items()} for row in rows]


def _table(cells: Iterator[list[str]], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    rows = filter(None, cells)
    names = list(columns) or next(rows, [])
    for number, row in enumerate(rows, start=1):
        if len(names) > 1 and len(row) == 1 and not row[0].strip():
            continue
        if len(row) != len(names):
            raise ValueError(f"row {number} has {len(row)} columns, not the {len(names)} of {', '.join(names)}")
        yield {
            name.removesuffix(_WHOLE): _whole(cell, name, number) if name.endswith(_WHOLE) else cell
            for name, cell in zip(names, row, strict=True)
        }


def _whole(cell: str, name: str, number: int) -> int:
    try:
        return int(cell)
    except ValueError as error:
        raise ValueError(f"row {number}, column `{name.removesuffix(_WHOLE)}`: {error}") from None


def _row(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is a {type(value).__name__}, not an object")
    return value


_READERS = {
    Format.JSONL: _jsonl,
    Format.JSON: _json,
    Format.CSV: _csv,
    Format.TSV: _tsv,
    Format.AGNEWS_CSV: _agnews,
}
