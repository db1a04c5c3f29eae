"""The table of worst cases, for all formats."""

from __future__ import annotations

from collections.abc import Callable
from math import isnan, nan
from statistics import median
from typing import NamedTuple

from harness.report.output.markdown import literal
from harness.report.stats.durability import Durability
from harness.report.stats.labels import number, one_line
from harness.report.stats.worst_case import Adaptive, WorstCase

DURABILITY_HEADING = ("attack's setting", "defense", "seeds", "HS (sd)", "worst seed", "FA")
DURABILITY_NOTE = (
    "Durability: every setting of the attack, on all prompts; mean HS over its seeds, their standard deviation, and "
    "the seed with the highest HS."
)
HEADING = ("defense", "trials", "useful", "worst case", "HS", "FA", "HS of useful trials")


class WorstLine(NamedTuple):
    """A line: the defense that determines its filter, and its cells under ``HEADING``."""

    defense: str
    cells: tuple[str, ...]


def worst_lines(adaptive: Adaptive | None) -> list[WorstLine]:
    """Return the lines, the least harmful worst case first; none without an attacker."""
    cases = adaptive.cases if adaptive else []
    ordered = sorted(cases, key=lambda case: case.chosen.reported if case.chosen else 0.0)
    return [WorstLine(case.defense, _cells(case)) for case in ordered]


def durability_lines(adaptive: Adaptive | None) -> list[WorstLine]:
    """Return a line for each setting of the attack and each defense; none without an attacker."""
    return [WorstLine(each.defense, _durability_cells(each)) for each in (adaptive.durability if adaptive else [])]


def worst_text(adaptive: Adaptive | None) -> list[str]:
    """Return the table and its notes as lines for a terminal, which has no room for every setting of the attack."""
    return ["", *_paragraphs(adaptive, "simple", str)] if adaptive else []


def worst_markdown(adaptive: Adaptive | None) -> list[str]:
    """Return the tables and their notes as paragraphs of Markdown."""
    from tabulate import tabulate

    if adaptive is None:
        return []
    lines = [[literal(cell) for cell in line.cells] for line in durability_lines(adaptive)]
    durability = tabulate(lines, DURABILITY_HEADING, tablefmt="pipe", disable_numparse=True)
    return [*_paragraphs(adaptive, "pipe", literal), DURABILITY_NOTE, durability]


def worst_sentences(adaptive: Adaptive | None) -> list[str]:
    """Return the worst cases as sentences, for a page that has no room for another table."""
    if adaptive is None:
        return []
    lines = [line.cells for line in worst_lines(adaptive)]
    cases = "; ".join(f"{name} {harm} ({chosen})" for name, _, _, chosen, harm, _, _ in lines)
    return [*adaptive.notes, f"Worst-case HS: {cases}."]


def _paragraphs(adaptive: Adaptive, style: str, shown: Callable[[str], str]) -> list[str]:
    from tabulate import tabulate

    lines = [[shown(cell) for cell in line.cells] for line in worst_lines(adaptive)]
    table = tabulate(lines, HEADING, tablefmt=style, disable_numparse=True)
    return [table, *(shown(one_line(note)) for note in adaptive.notes)]


def _durability_cells(case: Durability) -> tuple[str, ...]:
    start = case.setting, case.name, str(case.seeds)
    accuracy = number(case.fa, nan, nan)
    if case.worst_seed is None:
        return (*start, "-", "-", accuracy)
    spread = "" if isnan(case.deviation) else f" ({case.deviation:.1f})"
    return (*start, f"{case.mean:.1f}{spread}", f"{case.worst:.1f} (seed {case.worst_seed})", accuracy)


def _cells(case: WorstCase) -> tuple[str, ...]:
    start = case.name, str(len(case.trials)), str(case.useful)
    if case.chosen is None:
        return (*start, "no useful trial", "-", "-", "-")
    reported = sorted(trial.reported for trial in case.trials if trial.counts)
    spread = f"{reported[0]:.1f} to {reported[-1]:.1f}, median {median(reported):.1f}"
    return (
        *start,
        case.chosen.name,
        number(case.chosen.reported, case.low, case.high),
        f"{case.chosen.fa:.1f}",
        spread,
    )
