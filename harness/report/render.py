"""Rows as text. A format is one function from tidy rows to a string; add it to ``FORMATS`` and it has a name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from io import StringIO
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import ConfigError
from harness.report.rows import COUNTS, GRADINGS, LABELS, MISSING, NOTES, SCORES, swept_in
from harness.report.table import HALF, LEVEL, NOTE, SIZE, summarise

if TYPE_CHECKING:
    from pandas import DataFrame, Series

HEADINGS = {
    "hs": "HS",
    "hs_plus": "HS+",
    "fa": "FA",
    "aligned_hs": "aligned HS",
    "aligned_fa": "aligned FA",
}
"""The scores of a table, in percent, and what they are called there."""
WIDTH = 240
"""Columns of the terminal table before cells are wrapped."""


class Sheet(NamedTuple):
    """A table of text, ready to be drawn.

    Attributes:
        caption: what all lines have in common.
        heading: the names of the columns.
        lines: the cells.
        notes: what must be known to read the lines.
    """

    caption: str
    heading: list[str]
    lines: list[list[str]]
    notes: list[str]


def render(rows: DataFrame, format: str) -> str:
    """Return the rows as text in a format of ``FORMATS``.

    Args:
        rows: what ``load_rows`` returned.
        format: ``table`` (for a terminal), ``md``, ``csv`` (the tidy rows) or ``json`` (rows and table).

    Raises:
        ConfigError: the format is unknown.
    """
    if format not in FORMATS:
        raise ConfigError([f"`--format`: `{format}` is unknown; expected one of {', '.join(FORMATS)}"])
    return FORMATS[format](rows)


def sheet(rows: DataFrame) -> Sheet:
    """Return the table of means over seeds as text: defense, swept values and ratio against the scores."""
    lines = summarise(rows)
    swept = [name for name in swept_in(rows) if lines[name].nunique(dropna=False) > 1 and not _repeats(lines, name)]
    constant = [name for name in ("task", "attack", "model") if lines[name].nunique(dropna=False) <= 1]
    shown = [name for name in ("model", "task", "attack") if name not in constant]
    named = ["defense", *swept, *shown, "ratio"]
    scores = [name for name in HEADINGS if rows[name].notna().any()]
    markers = {
        note: chr(ord("a") + i % 26) * (1 + i // 26) for i, note in enumerate(filter(None, lines[NOTE].unique()))
    }
    cells = []
    for _, line in lines.iterrows():
        label = [_value(line[name]) for name in named]
        if line[NOTE]:
            label[0] += f" [{markers[line[NOTE]]}]"
        cells.append([*label, *(_score(line, name) for name in scores), str(line["seeds"])])
    heading = [*named, *(HEADINGS[name] for name in scores), "seeds"]
    caption = ", ".join(f"{name} {_value(lines[name].iloc[0])}" for name in constant if len(lines))
    return Sheet(caption, heading, cells, [*_markers(markers), *_remarks(rows, lines)])


def _repeats(lines: DataFrame, name: str) -> bool:
    """Return whether a swept value only says again what a label says, as ``attack_ratio`` does for the ratio."""
    values = lines[name].nunique(dropna=False)
    return any(
        values == lines[label].nunique(dropna=False) == len(lines[[name, label]].drop_duplicates())
        for label in ("ratio", "task", "attack", "model")
    )


def _markers(markers: Mapping[str, str]) -> list[str]:
    return [f"[{marker}] another protocol than the other rows: {note}." for note, marker in markers.items()]


def _remarks(rows: DataFrame, lines: DataFrame) -> list[str]:
    notes = ["Scores in percent."]
    if lines[[score + HALF for score in SCORES]].notna().any(axis=None):
        notes = [f"Scores in percent: mean and {LEVEL:.0%} t-interval over seeds."]
    unjudged = {name: int(lines[name].sum()) for name in COUNTS if name.endswith("_unjudged")}
    notes += [
        f"{count} answers could not be judged and are in no {HEADINGS[name.removesuffix('_unjudged')]}."
        for name, count in unjudged.items()
        if count
    ]
    remarkable = rows[(rows[MISSING] != "") | (rows[NOTES] != "")]
    unfinished = int((rows[MISSING] != "").sum())
    if unfinished:
        notes.append(f"{unfinished} of {len(rows)} cells are not finished:")
    elif len(remarkable):
        notes.append("Of single cells:")
    identity = [*LABELS, *swept_in(rows)]
    for _, row in remarkable.iterrows():
        label = ", ".join(f"{name}={_value(row[name])}" for name in identity if _value(row[name]) != "-")
        told = [f"missing {_columns_of(row[MISSING])}"] if row[MISSING] else []
        notes.append(f"- {label}: {'; '.join([*told, *([row[NOTES]] if row[NOTES] else [])])}")
    return notes


def _columns_of(missing: str) -> str:
    """Name the scores that missing grades would fill."""
    scores = {grading.stage: HEADINGS[grading.score] for grading in GRADINGS}
    return ", ".join(scores[stage] for stage in missing.split(", ") if stage in scores)


def _score(line: Series, name: str) -> str:
    if line[name] != line[name]:
        return "-"
    interval = "" if line[name + HALF] != line[name + HALF] else f" ± {line[name + HALF]:.1f}"
    fewer = "" if line[name + SIZE] == line["seeds"] else f" (n={line[name + SIZE]})"
    return f"{line[name]:.1f}{interval}{fewer}"


def _value(value: Any) -> str:
    if value is None or value != value:  # noqa: PLR0124  (NaN: the cell lacks the setting)
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _terminal(rows: DataFrame) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    content = sheet(rows)
    table = Table(box=box.SIMPLE_HEAD, title=content.caption, title_justify="left", title_style="")
    for name in content.heading:
        table.add_column(Text(name), justify="left" if name == "defense" else "right", no_wrap=True)
    for line in content.lines:
        table.add_row(*(Text(cell) for cell in line))
    stream = StringIO()
    Console(file=stream, width=WIDTH, color_system=None).print(table)
    drawn = [line.rstrip() for line in stream.getvalue().splitlines()]
    return "\n".join([*drawn, *content.notes]) + "\n"


def _markdown(rows: DataFrame) -> str:
    from tabulate import tabulate

    content = sheet(rows)
    align = ["left" if name == "defense" else "right" for name in content.heading]
    table = tabulate(content.lines, content.heading, tablefmt="pipe", disable_numparse=True, colalign=align)
    paragraphs = [content.caption, table, "\n".join(content.notes).replace("finished:\n", "finished:\n\n")]
    return "\n\n".join(part for part in paragraphs if part) + "\n"


def _csv(rows: DataFrame) -> str:
    text: str = rows.to_csv(index=False)
    return text


def _json(rows: DataFrame) -> str:
    parts = {"rows": rows, "table": summarise(rows)}
    plain = {name: json.loads(frame.to_json(orient="records", double_precision=15)) for name, frame in parts.items()}
    return json.dumps(plain, indent=2, ensure_ascii=False) + "\n"


FORMATS: Mapping[str, Callable[[DataFrame], str]] = {
    "table": _terminal,
    "csv": _csv,
    "md": _markdown,
    "json": _json,
}
"""The formats by name."""
