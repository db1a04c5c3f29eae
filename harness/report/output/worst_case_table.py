"""The table of worst cases, for all formats."""

from __future__ import annotations

from statistics import median
from typing import NamedTuple

from harness.report.stats.labels import number
from harness.report.stats.worst_case import Adaptive, WorstCase

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
