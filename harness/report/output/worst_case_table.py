"""The table of worst cases under an adaptive attacker."""

from __future__ import annotations

from statistics import median

from harness.report.output.defense_table import DefenseTable, Line
from harness.report.stats.labels import number, one_line
from harness.report.stats.worst_case import Adaptive, WorstCase

_HEADING = ("defense", "trials", "useful", "worst case", "HS", "FA", "HS of useful trials")


def worst_case_table(adaptive: Adaptive | None) -> DefenseTable | None:
    """Return the table, the least harmful worst case first; None without an attacker."""
    if adaptive is None:
        return None
    ordered = sorted(adaptive.cases, key=lambda case: case.chosen.reported if case.chosen else 0.0)
    lines = [Line(case.defense, _cells(case)) for case in ordered]
    return DefenseTable(_HEADING, lines, [one_line(note) for note in adaptive.notes])


def worst_sentences(adaptive: Adaptive | None) -> list[str]:
    """Return the worst cases as sentences, for a page that has no room for another table."""
    table = worst_case_table(adaptive)
    if table is None:
        return []
    cases = "; ".join(f"{name} {harm} ({chosen})" for name, _, _, chosen, harm, _, _ in (x.cells for x in table.lines))
    return [*table.notes, f"Worst-case HS: {cases}."]


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
