"""The table of worst cases under an adaptive attacker."""

from __future__ import annotations

from math import isnan, nan
from statistics import median

from harness.report.output.defense_table import DefenseTable, Line
from harness.report.stats.durability import Durability
from harness.report.stats.labels import number, one_line
from harness.report.stats.worst_case import Adaptive, WorstCase

_HEADING = ("defense", "trials", "useful", "worst case", "HS", "FA", "HS of useful trials")
_DURABILITY_HEADING = ("attack's setting", "defense", "seeds", "HS (sd)", "worst seed", "FA")
_DURABILITY_NOTE = (
    "Durability: every setting of the attack, on all prompts; mean HS over its seeds, their standard deviation, and "
    "the seed with the highest HS."
)


def worst_case_table(adaptive: Adaptive | None) -> DefenseTable | None:
    """Return the table, the least harmful worst case first; None without an attacker."""
    if adaptive is None:
        return None
    ordered = sorted(adaptive.cases, key=lambda case: case.chosen.reported if case.chosen else 0.0)
    lines = [Line(case.defense, _cells(case)) for case in ordered]
    return DefenseTable(_HEADING, lines, [one_line(note) for note in adaptive.notes])


def durability_table(adaptive: Adaptive | None) -> DefenseTable | None:
    """Return a line for each setting of the attack and each defense; None without an attacker."""
    if adaptive is None:
        return None
    lines = [Line(each.defense, _durability_cells(each)) for each in adaptive.durability]
    return DefenseTable(_DURABILITY_HEADING, lines, [_DURABILITY_NOTE])


def worst_sentences(adaptive: Adaptive | None) -> list[str]:
    """Return the worst cases as sentences, for a page that has no room for another table."""
    table = worst_case_table(adaptive)
    if table is None:
        return []
    cases = "; ".join(f"{name} {harm} ({chosen})" for name, _, _, chosen, harm, _, _ in (x.cells for x in table.lines))
    return [*table.notes, f"Worst-case HS: {cases}."]


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
