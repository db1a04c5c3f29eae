"""Findings as text. A format is one function from findings to a string; add it to ``FORMATS`` and it has a name."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from io import StringIO
from math import isnan
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import ConfigError
from harness.report.data.columns import NOTES, records, value
from harness.report.data.comparability import SHOWN
from harness.report.data.conditions import varying
from harness.report.data.dropped import dropped_in
from harness.report.output.markdown import literal
from harness.report.stats.labels import HEADINGS, markers, number, one_line, remarks, score
from harness.report.stats.paper_table import ALIGNED, AVERAGE, Figure, PaperTable
from harness.report.stats.results import Results
from harness.report.stats.summary import NOTE

if TYPE_CHECKING:
    from pandas import DataFrame

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


def render(findings: Results, format: str) -> str:
    """Return the findings as text in a format of ``FORMATS``.

    Args:
        findings: what ``gather`` returned.
        format: ``table`` (for a terminal), ``md`` and ``latex`` (as papers print them), ``csv`` (the tidy rows),
            ``json`` (everything) or ``html`` (the page).

    Raises:
        ConfigError: the format is unknown.
    """
    if format not in FORMATS:
        raise ConfigError([f"`--format`: `{format}` is unknown; expected one of {', '.join(FORMATS)}"])
    return FORMATS[format](findings)


def sheet(rows: DataFrame, means: DataFrame) -> Sheet:
    """Return the lines as text: defense, swept values and ratio against the scores."""
    swept = varying(means, rows)
    constant = [name for name in ("task", "attack", "model") if means[name].nunique(dropna=False) <= 1]
    shown = [name for name in ("model", "task", "attack") if name not in constant]
    named = ["defense", *swept, *shown, "ratio"]
    scores = [name for name in HEADINGS if rows[name].notna().any()]
    letters = markers(means)
    cells = []
    for line in records(means):
        label = [value(line[name]) for name in named]
        if line[NOTE]:
            label[0] += f" [{letters[line[NOTE]]}]"
        cells.append([*map(one_line, label), *(score(line, name) for name in scores), str(line["seeds"])])
    heading = [*named, *(HEADINGS[name] for name in scores), "seeds"]
    caption = ", ".join(f"{name} {value(means[name].iloc[0])}" for name in constant if len(means))
    return Sheet(one_line(caption), heading, cells, remarks(rows, means))


def _terminal(findings: Results) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    content = sheet(findings.rows, findings.means)
    table = Table(box=box.SIMPLE_HEAD, title=content.caption, title_justify="left", title_style="")
    for name in content.heading:
        table.add_column(Text(name), justify="left" if name == "defense" else "right", no_wrap=True)
    for line in content.lines:
        table.add_row(*(Text(cell) for cell in line))
    stream = StringIO()
    Console(file=stream, width=WIDTH, color_system=None).print(table)
    drawn = [line.rstrip() for line in stream.getvalue().splitlines()]
    return "\n".join([*drawn, *content.notes]) + "\n"


def _markdown(findings: Results) -> str:
    from tabulate import tabulate

    paragraphs = []
    for board in _printed(findings):
        places = [(name, column) for name in board.scores for column in board.columns]
        heading = ["defense", *(f"{HEADINGS[name]} {_column(column)}" for name, column in places)]
        lines = [
            [
                literal(row.name) + (f" [{row.marker}]" if row.marker else ""),
                *(_marked(row.figures.get(at)) for at in places),
            ]
            for row in board.rows
        ]
        align = ["left", *["right"] * len(places)]
        table = tabulate(lines, heading, tablefmt="pipe", disable_numparse=True, colalign=align)
        paragraphs += [literal(board.caption), table]
    notes = "\n".join([*map(literal, remarks(findings.rows, findings.means)), *_on_boards(findings)])
    return "\n\n".join([*paragraphs, notes.replace(":\n- ", ":\n\n- ")]) + "\n"


def _printed(findings: Results) -> list[PaperTable]:
    """Return the boards with the two scores that papers print."""
    return [
        board._replace(scores=[name for name in board.scores if name != "hs_plus"]) for board in findings.paper_tables
    ]


def _column(column: str) -> str:
    return column if column in (ALIGNED, AVERAGE) else f"p={column}"


def _marked(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    text = number(figure.mean, figure.low, figure.high)
    return f"**{text}**" if figure.best else text


def _on_boards(findings: Results) -> list[str]:
    if len(findings.means) < 2:
        return []
    best = "Bold: better than every other of its column (paired test on seeds and prompts, Holm, p < 0.05)."
    return [f"p is the share of harmful rows in the user's data. {best}"]


def _latex(findings: Results) -> str:
    from jinja2 import Environment, StrictUndefined

    source = resources.files("harness.report.output").joinpath("templates", "table.tex.j2").read_text("utf-8")
    environment = Environment(  # LaTeX's own braces and percent signs stay what they are
        block_start_string="<%", block_end_string="%>", variable_start_string="<<", variable_end_string=">>",
        comment_start_string="<#", comment_end_string="#>", trim_blocks=True, lstrip_blocks=True, autoescape=False,
        undefined=StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"tex": _escaped, "mean": _tex_mean, "interval": _tex_interval}
    template = environment.from_string(source)
    notes = [*_in_short(remarks(findings.rows, findings.means)), *_on_dropped(findings), *_on_boards(findings)]
    return template.render(paper_tables=_printed(findings), headings=HEADINGS, column=_column, notes=notes)


def _on_dropped(findings: Results) -> list[str]:
    """Say where what was trained on is not what the table says; the lists of single cells are left out."""
    told = dropped_in(findings.rows[NOTES])
    most = [f"{note} ({count} of {len(findings.rows)} cells)." for note, count in told.most_common(SHOWN)]
    return most + ([f"{len(told) - SHOWN} more such notes: see table.md."] if len(told) > SHOWN else [])


def _in_short(notes: Sequence[str]) -> list[str]:
    """Return the notes without their lists of single cells, which can be longer than a page."""
    kept = [note for note in notes if not note.startswith("- ")]
    return [f"{note.removesuffix(':')}: see table.md." if note.endswith(":") else note for note in kept]


def _escaped(text: str) -> str:
    special = {character: f"\\{character}" for character in "&%$#_{}"}
    special |= {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    special |= {character: f"${character}$" for character in "<>|"}
    special |= {"\u2264": "$\\leq$", "\u2265": "$\\geq$", "\u2212": "$-$"}
    return "".join(special.get(character) or _known_to_tex(character) for character in one_line(text))


_NOT_IN_OT1 = "«»ÐÞðþĄąĐđĘęĦħĮįĸĿŀŉŊŋŦŧŲųſ"
"""The characters of Latin-1 and Latin Extended-A that pdflatex's own font encoding lacks."""


def _known_to_tex(character: str) -> str:
    """Return a character as pdflatex can set it: Greek as mathematics, what no font of Latin text has by its number."""
    if "\u03b1" <= character <= "\u03c9" and character not in "\u03bf\u03c2":
        # Unicode writes LAMDA.
        return f"$\\{unicodedata.name(character).rpartition(' ')[2].lower().replace('lamda', 'lambda')}$"
    latin = " " <= character < "\x7f" or ("\xa0" <= character < "\u0180" and character not in _NOT_IN_OT1)
    return (
        character if latin or character in "\u2013\u2014\u2018\u2019\u201c\u201d\u2026" else f"U+{ord(character):04X}"
    )


def _tex_mean(figure: Figure | None) -> str:
    if figure is None:
        return "--"
    return f"\\textbf{{{figure.mean:.1f}}}" if figure.best else f"{figure.mean:.1f}"


def _tex_interval(figure: Figure | None) -> str:
    """Return what stands below the mean; an interval beside it would make the table wider than a page."""
    if figure is None or isnan(figure.low):
        return ""
    return f"{{\\scriptsize [{figure.low:.1f}, {figure.high:.1f}]}}"


def _csv(findings: Results) -> str:
    text: str = findings.rows.to_csv(index=False)
    return text


def _json(findings: Results) -> str:
    frames = {"rows": findings.rows, "table": findings.means}
    plain: dict[str, Any] = {
        name: json.loads(frame.to_json(orient="records", double_precision=15)) for name, frame in frames.items()
    }
    plain["baseline"] = findings.baseline
    plain["comparisons"] = [
        {name: None if isinstance(found, float) and not abs(found) < float("inf") else found
         for name, found in comparison._asdict().items()}
        for comparison in findings.comparisons
    ]  # fmt: skip
    plain["left_out"] = list(findings.left_out)
    plain["best"] = [{"line": line, "score": name} for line, name in sorted(findings.best)]
    return json.dumps(plain, indent=2, ensure_ascii=False) + "\n"


def _html(findings: Results) -> str:
    from harness.report.output.page import page

    return page(findings)


FORMATS: Mapping[str, Callable[[Results], str]] = {
    "table": _terminal,
    "csv": _csv,
    "md": _markdown,
    "latex": _latex,
    "json": _json,
    "html": _html,
}
"""The formats by name."""
