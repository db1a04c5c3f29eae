"""Markdown as its readers parse it."""

from itertools import pairwise

import pytest
from fabricated import Fabricator
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from harness.report.output.formats import render
from harness.report.output.markdown import literal
from harness.report.stats.results import load_results

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def tables(markdown: str) -> list[list[list[str]]]:
    """The texts of the cells of every table, row by row; anything but text in a cell is an error."""
    found: list[list[list[str]]] = []
    tokens = PARSER.parse(markdown)
    for before, token in pairwise([Token("start", "", 0), *tokens]):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif before.type in ("th_open", "td_open"):
            kinds = {child.type for child in token.children or []}
            assert kinds <= {"text", "text_special", "strong_open", "strong_close"}, kinds
            found[-1][-1].append("".join(child.content for child in token.children or []))
    return found


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]) | st.sampled_from("|\\\n\r\t`*_~<>[]()!&;#$:-x")))
@example("a|b, c")
@example("one\ntwo")
@example("back\\|slash")
@example("<b>x</b> &amp; [x](y) ![x](y) `x` *x* __x__ ~~x~~ <http://x.org>")
def test_any_text_is_one_cell_and_shown_as_it_is(text):
    assert tables(f"| a | b |\n|---|---|\n| {literal(text)} | end |") == [[["a", "b"], [" ".join(text.split()), "end"]]]


@pytest.fixture
def odd(tmp_path):
    """Two lines whose labels hold what a table is made of."""
    maker = Fabricator(tmp_path / "store", prompts=10, answers=10, categories=False)
    notes = {"sft": "a|b, c", "booster": "one\n\ntwo | **three**"}
    cells = [maker.cell(defense, 0.1, seed, {"task.note": note}) for defense, note in notes.items() for seed in (0, 1)]
    cells[-1]["keys"]["harm"] = "none"
    return load_results(maker.store, maker.sweep(cells))


def test_every_row_of_a_markdown_table_has_the_cells_of_its_heading(odd):
    (table,) = tables(render(odd, "md"))

    assert {len(row) for row in table} == {len(table[0])}
    assert [row[0] for row in table[1:]] == ["sft (note a|b, c)", "booster (note one two | **three**)"]


def test_note_of_a_cell_is_one_line_in_every_format(odd):
    for format in ("md", "table"):
        notes = [line for line in render(odd, format).splitlines() if line.startswith("- ")]
        assert len(notes) == 1
        assert "missing HS" in notes[0]


def test_line_of_the_terminal_table_is_one_line(odd):
    assert "one two | **three**" in render(odd, "table")
