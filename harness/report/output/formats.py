"""Text formats of a report. A format is a function from results to a string, registered by name in ``FORMATS``."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from io import StringIO
from itertools import pairwise
from math import isfinite, isnan
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import ConfigError
from harness.report.data.columns import NOTES, records, shares_in, value
from harness.report.data.comparability import SHOWN
from harness.report.data.conditions import condition_name, varying
from harness.report.data.dropped import count_dropped_notes
from harness.report.data.judges import JUDGE
from harness.report.output.defense_table import DefenseTable
from harness.report.output.ensemble_table import ensemble_table
from harness.report.output.equal_accuracy_table import equal_accuracy_table
from harness.report.output.markdown import literal
from harness.report.output.worst_case_table import durability_table, worst_case_table, worst_sentences
from harness.report.stats.labels import (
    HEADINGS,
    MEANINGS,
    condition_names,
    headings,
    markers,
    number,
    one_line,
    remarks,
    score,
)
from harness.report.stats.paper_table import ALIGNED, AVERAGE, CellValue, PaperTable
from harness.report.stats.results import Results
from harness.report.stats.summary import NOTE

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMN = 5
"""Columns of numbers that are readable in one column of a two-column page."""
WIDEST = 100_000
"""A width in characters that no table has."""


class Sheet(NamedTuple):
    """A table as text.

    Attributes:
        caption: the labels that all rows share.
        heading: the names of the columns.
        lines: the cells, row by row.
        notes: footnotes.
    """

    caption: str
    heading: list[str]
    lines: list[list[str]]
    notes: list[str]


def render(results: Results, format: str) -> str:
    """Return the results as text in a format of ``FORMATS``.

    Args:
        results: as returned by ``load_results``.
        format: ``table`` (for a terminal), ``md`` and ``latex`` (in the format of papers), ``csv`` (the tidy rows),
            ``json`` (everything) or ``html`` (the page).

    Raises:
        ConfigError: the format is unknown.
    """
    if format not in FORMATS:
        raise ConfigError([f"`--format`: `{format}` is unknown; expected one of {', '.join(FORMATS)}"])
    return FORMATS[format](results)


def sheet(rows: DataFrame, means: DataFrame) -> Sheet:
    """Return the table of the means as text: defense, swept values, ratio, scores and shares that stages report."""
    swept = varying(means, rows)
    constant = [name for name in ("task", "attack", "model") if means[name].nunique(dropna=False) <= 1]
    shown = [name for name in ("model", "task", "attack") if name not in constant]
    named = ["defense", *swept, *shown, "ratio"]
    called = headings(rows)
    scores = [name for name in called if rows[name].notna().any()]
    letters = markers(means)
    cells = []
    for row in records(means):
        label = [value(row[name]) for name in named]
        if row[NOTE]:
            label[0] += f" [{letters[row[NOTE]]}]"
        cells.append([*map(one_line, label), *(score(row, name) for name in scores), str(row["seeds"])])
    heading = [*named, *(called[name] for name in scores), "seeds"]
    caption = ", ".join(f"{name} {value(means[name].iloc[0])}" for name in constant if len(means))
    return Sheet(one_line(caption), heading, cells, remarks(rows, means))


def _terminal(results: Results) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    content = sheet(results.rows, results.means)
    table = Table(box=box.SIMPLE_HEAD, title=content.caption, title_justify="left", title_style="")
    for name in content.heading:
        table.add_column(Text(name), justify="left" if name == "defense" else "right", no_wrap=True)
    for row in content.lines:
        table.add_row(*(Text(cell) for cell in row))
    stream = StringIO()
    # As wide as it needs to be: a cut number or label would be a wrong one, and the same text goes into a file.
    Console(file=stream, width=WIDEST, color_system=None).print(table)
    drawn = [line.rstrip() for line in stream.getvalue().splitlines()]
    # There is no room for every setting of an attack, nor for a comparison with every baseline.
    tables = worst_case_table(results.adaptive), _ensemble_table(results)
    more = [line for table in tables if table is not None for line in table.text()]
    return "\n".join([*drawn, *content.notes, *_judge_notes(results), *more]) + "\n"


def _markdown(results: Results) -> str:
    from tabulate import tabulate

    paragraphs = []
    for paper_table in _paper_tables(results):
        places = [(name, column) for name in paper_table.scores for column in paper_table.columns]
        heading = ["defense", *(f"{HEADINGS[name]} {_column(column)}" for name, column in places)]
        lines = [
            [
                literal(row.name) + (f" [{row.marker}]" if row.marker else ""),
                *(_bold(row.cells.get(at)) for at in places),
            ]
            for row in paper_table.rows
        ]
        align = ["left", *["right"] * len(places)]
        table = tabulate(lines, heading, tablefmt="pipe", disable_numparse=True, colalign=align)
        paragraphs += [literal(paper_table.caption), table]
    notes = [
        *map(literal, (*remarks(results.rows, results.means), *_judge_notes(results), *_share_notes(results))),
        *_paper_table_notes(results),
    ]
    tables = (
        worst_case_table(results.adaptive),
        durability_table(results.adaptive),
        _ensemble_table(results),
        equal_accuracy_table(results),
    )
    more = [paragraph for table in tables if table is not None for paragraph in table.markdown()]
    stated = [f"- {literal(each.method)}: {literal(each.statement)}" for each in results.fidelities]
    fidelity = ["Fidelity of the methods:", "\n".join(stated)] if stated else []
    return "\n\n".join([*paragraphs, _with_lists(notes), *more, *fidelity]) + "\n"


def _with_lists(lines: Sequence[str]) -> str:
    """Return lines as Markdown, with empty lines around lists."""
    text = "".join(lines[:1])
    for before, line in pairwise(lines):
        text += ("\n\n" if before.startswith("- ") != line.startswith("- ") else "\n") + line
    return text


def _ensemble_table(results: Results) -> DefenseTable | None:
    return ensemble_table(results.ensembles, condition_names(results.means, results.rows))


def _paper_tables(results: Results) -> list[PaperTable]:
    """Return the tables without HS+, which papers do not report: HS, FA and, if it was measured, over-refusal."""
    return [
        paper_table._replace(scores=[name for name in paper_table.scores if name != "hs_plus"])
        for paper_table in results.paper_tables
    ]


def _column(column: str) -> str:
    return column if column in (ALIGNED, AVERAGE) else f"p={column}"


def _bold(figure: CellValue | None) -> str:
    if figure is None:
        return "-"
    text = number(figure.mean, figure.low, figure.high)
    return f"**{text}**" if figure.best else text


def _paper_table_notes(results: Results) -> list[str]:
    if results.means.empty:
        return []
    notes = [_seed_note(results)]
    if len(results.means) > 1:
        notes.append("p is the share of harmful rows in the user's data.")
        tests = "(paired tests with each, Holm over these, p < 0.05)"
        if results.best:
            judge = " by the same judge" if JUDGE in results.means else ""
            notes.append(f"Bold: better than every other of its ratio{judge} {tests}.")
        elif results.means["seeds"].max() > 1:
            notes.append(f"None is better than every other of its ratio {tests}.")
    return [" ".join(notes)]


def _seed_note(results: Results) -> str:
    """Return the number of seeds behind most conditions, and behind the others."""
    names, ratios = condition_names(results.means, results.rows), results.means["ratio"]
    counts = [int(count) for count in results.means["seeds"]]
    usual = Counter(counts).most_common(1)[0][0]
    others = [
        f"{name} at p={float(ratio):g}: {count}"
        for name, ratio, count in zip(names, ratios, counts, strict=True)
        if count != usual
    ]
    more = [f"{len(others) - SHOWN} more with other numbers"] if len(others) > SHOWN else []
    return f"Seeds: {usual}{''.join(f'; {each}' for each in (*others[:SHOWN], *more))}."


def _share_notes(results: Results) -> list[str]:
    """Return the shares that stages report, for tables in the format of papers, which have scores only."""
    called, swept = headings(results.rows), varying(results.means, results.rows)
    notes = []
    for row in records(results.means):
        shares = [f"{called[name]} {score(row, name)}" for name in shares_in(results.rows) if row[name] == row[name]]
        if shares:
            notes.append(f"{condition_name(row, swept)}, p={value(row['ratio'])}: {', '.join(shares)} (percent).")
    return list(map(one_line, notes))


def _judge_notes(results: Results) -> list[str]:
    return [*results.scale_notes, *map(one_line, results.judges.notes if results.judges else ())]


def _latex(results: Results) -> str:
    from jinja2 import Environment, StrictUndefined

    source = resources.files("harness.report.output").joinpath("templates", "table.tex.j2").read_text("utf-8")
    environment = Environment(  # delimiters that do not clash with LaTeX's braces and percent signs
        block_start_string="<%", block_end_string="%>", variable_start_string="<<", variable_end_string=">>",
        comment_start_string="<#", comment_end_string="#>", trim_blocks=True, lstrip_blocks=True, autoescape=False,
        undefined=StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"tex": _escape_tex, "mean": _tex_mean, "interval": _tex_interval}
    template = environment.from_string(source)
    ensembles = _ensemble_table(results)
    shown = dict.fromkeys(score for paper_table in _paper_tables(results) for score in paper_table.scores)
    notes = [
        *_in_short(remarks(results.rows, results.means)),
        *_on_dropped(results),
        *_judge_notes(results),
        *worst_sentences(results.adaptive),
        *(ensembles.notes if ensembles else ()),
        "; ".join(f"{HEADINGS[score]}: {MEANINGS[score]}" for score in shown) + "; aligned: before the fine-tuning.",
        *_share_notes(results),
        *_paper_table_notes(results),
    ]
    return template.render(
        paper_tables=_paper_tables(results),
        headings=HEADINGS,
        column=_column,
        notes=notes,
        environment=_tex_environment,
    )


def _tex_environment(paper_table: PaperTable) -> str:
    """Return the environment of a table: over both columns of a page if its numbers would be too small in one."""
    return "table*" if len(paper_table.scores) * len(paper_table.columns) > COLUMN else "table"


def _on_dropped(results: Results) -> list[str]:
    """Return the most frequent notes on dropped examples, without the lists of single cells."""
    notes = count_dropped_notes(results.rows[NOTES])
    most = [f"{note} ({count} of {len(results.rows)} cells)." for note, count in notes.most_common(SHOWN)]
    return most + ([f"{len(notes) - SHOWN} more such notes: see table.md."] if len(notes) > SHOWN else [])


def _in_short(notes: Sequence[str]) -> list[str]:
    """Return the notes without lists of single cells, which can be longer than a page."""
    kept = [note for note in notes if not note.startswith("- ")]
    return [f"{note.removesuffix(':')}: see table.md." if note.endswith(":") else note for note in kept]


def _escape_tex(text: str) -> str:
    special = {character: f"\\{character}" for character in "&%$#_{}"}
    special |= {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    special |= {character: f"${character}$" for character in "<>|"}
    special |= {"\u2264": "$\\leq$", "\u2265": "$\\geq$", "\u2212": "$-$"}
    return "".join(special.get(character) or _tex_character(character) for character in one_line(text))


_NOT_IN_OT1 = "«»ÐÞðþĄąĐđĘęĦħĮįĸĿŀŉŊŋŦŧŲųſ"
"""Characters of Latin-1 and Latin Extended-A that are missing in pdflatex's default font encoding, OT1."""


def _tex_character(character: str) -> str:
    """Return a character for pdflatex: Greek letters in math mode, characters without a glyph by their code point."""
    if "\u03b1" <= character <= "\u03c9" and character not in "\u03bf\u03c2":
        # The Unicode name is LAMDA.
        return f"$\\{unicodedata.name(character).rpartition(' ')[2].lower().replace('lamda', 'lambda')}$"
    latin = " " <= character < "\x7f" or ("\xa0" <= character < "\u0180" and character not in _NOT_IN_OT1)
    return (
        character if latin or character in "\u2013\u2014\u2018\u2019\u201c\u201d\u2026" else f"U+{ord(character):04X}"
    )


def _tex_mean(figure: CellValue | None) -> str:
    if figure is None:
        return "--"
    return f"\\textbf{{{figure.mean:.1f}}}" if figure.best else f"{figure.mean:.1f}"


def _tex_interval(figure: CellValue | None) -> str:
    """Return the interval, which is set below the mean so that the table fits on a page."""
    if figure is None or isnan(figure.low):
        return ""
    return f"{{\\scriptsize [{figure.low:.1f}, {figure.high:.1f}]}}"


def _csv(results: Results) -> str:
    text: str = results.rows.to_csv(index=False)
    return text


def _json(results: Results) -> str:
    frames = {"rows": results.rows, "table": results.means}
    plain: dict[str, Any] = {
        name: json.loads(frame.to_json(orient="records", double_precision=15)) for name, frame in frames.items()
    }
    plain["baseline"] = results.baseline
    plain["comparisons"] = _plain(list(results.comparisons))
    if results.judges:
        plain["judges"] = _plain(results.judges)
    if results.adaptive:
        plain["worst_cases"] = _plain(results.adaptive)
    if results.ensembles:
        plain["ensembles"] = [_plain(each) | {"scores": dict(each.scores)} for each in results.ensembles]
    if results.equal_accuracy:
        plain["equal_accuracy"] = _plain(list(results.equal_accuracy))
    plain["fidelity"] = [each._asdict() for each in results.fidelities]
    plain["left_out"] = list(results.left_out)
    plain["best"] = [{"line": line, "score": name} for line, name in sorted(results.best)]
    return json.dumps(plain, indent=2, ensure_ascii=False) + "\n"


def _plain(found: Any) -> Any:
    """Return nested named tuples as JSON values; NaN and infinity as None."""
    if hasattr(found, "_asdict"):
        return {name: _plain(each) for name, each in found._asdict().items()}
    if isinstance(found, list | tuple):
        return [_plain(each) for each in found]
    return None if isinstance(found, float) and not isfinite(found) else found


def _html(results: Results) -> str:
    from harness.report.output.page import page

    return page(results)


FORMATS: Mapping[str, Callable[[Results], str]] = {
    "table": _terminal,
    "csv": _csv,
    "md": _markdown,
    "latex": _latex,
    "json": _json,
    "html": _html,
}
"""The formats by name."""
