"""The table of ensembles and their controls, for all formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from harness.report.output.markdown import literal
from harness.report.stats.ensembles import EnsembleScore
from harness.report.stats.labels import HEADINGS, number, one_line
from harness.stages.cross_fit import ALL, BEST, BY_SCORE, ENSEMBLE, MEAN, ORACLE, RANDOM

CONTROLS = {
    ENSEMBLE: "ensemble",
    BEST: "best member",
    MEAN: "mean member",
    ALL: "vote of all",
    BY_SCORE: "by score only",
    RANDOM: "random subset",
    ORACLE: "oracle",
}
ENSEMBLE_HEADING = ("ensemble", "score", *list(CONTROLS.values())[1:], "gain over best member", "diversity", "asked")
"""The second column has the ensemble's own score."""
NOTE = (
    "Everything is chosen on other folds of the prompts than it is scored on, the best member too; the oracle alone "
    "knows the grades, and is an upper bound. Diversity: focal diversity of all members' failures. Asked: mean number "
    "of members. Each score has a choice of its own, which a deployed system has not: HS and over-refusal of a row are "
    "those of one system only if the same members are asked."
)


class EnsembleLine(NamedTuple):
    """A line: the defense that determines its filter, and its cells under ``ENSEMBLE_HEADING``."""

    defense: str
    cells: tuple[str, ...]


def ensemble_lines(found: Sequence[EnsembleScore], names: Sequence[str]) -> list[EnsembleLine]:
    """Return the lines.

    Args:
        found: as returned by ``ensemble_scores``.
        names: the name of each condition of the sweep.
    """
    return [EnsembleLine(each.defense, _cells(each, names[each.line])) for each in found]


def ensemble_notes(found: Sequence[EnsembleScore], names: Sequence[str]) -> list[str]:
    """Return what the table allows to say, one sentence per line; empty without ensembles."""
    sentences = [
        f"{names[each.line]}, {HEADINGS[each.score]}: {each.verdict} "
        f"({number(each.gain, each.low, each.high)} points, {each.seeds} {'seed' if each.seeds == 1 else 'seeds'})."
        for each in found
    ]
    return [NOTE, *map(one_line, sentences)] if found else []


def ensemble_text(found: Sequence[EnsembleScore], names: Sequence[str]) -> list[str]:
    """Return the table and its notes as lines for a terminal."""
    return ["", *_paragraphs(found, names, "simple", str)] if found else []


def ensemble_markdown(found: Sequence[EnsembleScore], names: Sequence[str]) -> list[str]:
    """Return the table and its notes as paragraphs of Markdown."""
    return _paragraphs(found, names, "pipe", literal) if found else []


def _paragraphs(
    found: Sequence[EnsembleScore], names: Sequence[str], style: str, shown: Callable[[str], str]
) -> list[str]:
    from tabulate import tabulate

    lines = [[shown(cell) for cell in line.cells] for line in ensemble_lines(found, names)]
    table = tabulate(lines, ENSEMBLE_HEADING, tablefmt=style, disable_numparse=True)
    return [table, *(shown(note) for note in ensemble_notes(found, names))]


def _cells(each: EnsembleScore, name: str) -> tuple[str, ...]:
    nan = float("nan")
    own, *others = (number(each.scores.get(control, nan), nan, nan) for control in CONTROLS)
    return (
        one_line(name),
        f"{HEADINGS[each.score]} {own}",
        *others,
        number(each.gain, each.low, each.high),
        "-" if each.diversity != each.diversity else f"{each.diversity:.2f}",
        f"{each.pool:.1f}",
    )
