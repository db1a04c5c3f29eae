"""The table for a paper, as LaTeX reads it."""

import os
import shutil
import subprocess
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from fabricated import Fabricator

from harness.report.output.formats import render
from harness.report.stats.results import load_results

ODD = "a_b & 50% #{x} ~^\\ <z>| λ µ é ≥ × “q” [x] 中\x7f\n\n\tend"


@pytest.fixture
def table(tmp_path: Path) -> str:
    """Three protocols, a label of odd characters, and a cell that is not finished."""
    maker = Fabricator(tmp_path / "store", prompts=20, answers=20, categories=False)
    cells = []
    for version, defense in enumerate(("sft", "vaccine", "booster")):
        for seed in range(2):
            cell = maker.cell(defense, 0.1, seed, {"attack.method.note": ODD} if defense == "booster" else {})
            cells.append(cell | {"protocol": cell["protocol"] | {"judge.version": version}})
    cells[-1]["keys"]["harm"] = "none"
    return render(load_results(maker.store, maker.sweep(cells)), "latex")


def test_latex_notes_are_paragraphs_and_name_no_single_cell(table):
    notes = table.partition("\\footnotesize\n")[2].partition("\\end{flushleft}")[0].splitlines()

    assert [note[:3] for note in notes[:2]] == ["[a]", "[b]"]
    assert all(note.endswith("\\par") for note in notes)
    assert "1 of 6 cells are not finished: see table.md.\\par" in notes
    assert "seed=" not in table


def test_latex_labels_are_characters_that_pdflatex_knows(table):
    assert "a\\_b \\& 50\\% \\#\\{x\\} \\textasciitilde{}\\textasciicircum{}\\textbackslash{}" in table
    assert "$\\lambda$ µ é $\\geq$ × “q” [x] U+4E2DU+007F end" in table


def test_latex_table_with_two_footnotes_compiles(table, tmp_path):
    compiled(tmp_path, table)


def test_latex_of_any_character_compiles(findings, tmp_path):
    """Letters, symbols, numbers, marks, blanks and controls, up to the box drawings."""
    settable = [chr(code) for code in range(0x20, 0x2500) if unicodedata.category(chr(code))[0] in "LSNPZC"]
    caption = [findings.paper_tables[0]._replace(caption=" ".join(settable))]

    table = render(replace(findings, paper_tables=caption), "latex")

    assert "U+0105" in table
    assert "é" in table
    compiled(tmp_path, table)


def compiled(folder, table):
    if shutil.which("pdflatex") is None:
        missing = "no pdflatex on this machine (Debian: apt install texlive-latex-extra)"
        pytest.fail(missing) if os.environ.get("HARNESS_CI") else pytest.skip(missing)
    (folder / "table.tex").write_text(table, encoding="utf-8")
    (folder / "paper.tex").write_text(
        "\\documentclass{article}\\usepackage{adjustbox, booktabs}\\begin{document}\\input{table}\\end{document}"
    )

    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=folder, capture_output=True, text=True, check=False, timeout=120, errors="replace",
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-2000:]


def test_latex_table_says_what_its_scores_are_and_can_be_referred_to(table):
    assert "HS: harmful score: share of harmful prompts answered harmfully" in table
    assert table.count("\\label{tab:harness-1}") == 1


@pytest.mark.parametrize(("ratios", "environment"), [((0.1,), "table"), ((0.0, 0.1, 0.2), "table*")])
def test_latex_table_of_many_columns_is_over_both_columns_of_a_page(tmp_path, ratios, environment):
    maker = Fabricator(tmp_path / "store", prompts=60, answers=40)
    maker.sweep([maker.cell(name, ratio, 0, {}) for name in ("sft", "vaccine") for ratio in ratios])

    text = render(load_results(maker.store, maker.store.read_sweep("drawn-1")), "latex")

    assert f"\\begin{{{environment}}}[t]" in text
    assert f"\\end{{{environment}}}" in text
