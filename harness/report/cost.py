"""Cost: hours per stage kind, what sharing saved, and what each defense takes beside plain training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from harness.report.findings import Findings
from harness.report.ledger import Entry

HOUR = 3600.0


class KindCost(NamedTuple):
    """The stages of one kind.

    Attributes:
        kind: their name.
        distinct: how many there are.
        finished: how many of them are in the store.
        unshared: how many there would be if every cell ran its own.
        hours: of one device, over the finished ones; times the processes of each.
        saved: hours that the cells did not spend because they share stages.
        predicted: hours of the finished ones, as predicted; None if nothing was predicted.
        device: where they ran.
    """

    kind: str
    distinct: int
    finished: int
    unshared: int
    hours: float
    saved: float
    predicted: float | None
    device: str


class Overhead(NamedTuple):
    """A defense's mean seconds per stage, by kind, and their sum as a multiple of the baseline's (None without one)."""

    defense: str
    seconds: Mapping[str, float]
    total: float
    ratio: float | None


def kinds(findings: Findings) -> list[KindCost]:
    """Return the cost of each stage kind, in the order of the chain."""
    by_kind: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in findings.ledger.values():
        by_kind[entry.kind].append(entry)
    return [_kind(kind, entries) for kind, entries in by_kind.items()]


def overheads(findings: Findings) -> list[Overhead]:
    """Return what training costs under each defense: the stages where a defense acts, mean over its cells."""
    seconds: dict[str, dict[str, float]] = {}
    for defense, rows in findings.rows.groupby("defense", sort=False):
        seconds[str(defense)] = {}
        for kind in ("align", "finetune", "repair"):
            column = f"key.{kind}"
            keys = [key for key in rows[column].unique() if isinstance(key, str)] if column in rows else []
            known = [entry.seconds * entry.processes for key in keys if (entry := findings.ledger[key]).seconds]
            if known:
                seconds[str(defense)][kind] = sum(known) / len(known)
    totals = {defense: sum(parts.values()) for defense, parts in seconds.items() if parts}
    plain = totals.get(findings.baseline or "")
    return [
        Overhead(defense, seconds[defense], total, total / plain if plain else None)
        for defense, total in totals.items()
    ]


def _kind(kind: str, entries: list[Entry]) -> KindCost:
    done = [(entry, entry.seconds * entry.processes / HOUR) for entry in entries if entry.seconds is not None]
    known = [entry.predicted * entry.processes / HOUR for entry, _ in done if entry.predicted is not None]
    return KindCost(
        kind=kind,
        distinct=len(entries),
        finished=len(done),
        unshared=sum(entry.uses for entry in entries),
        hours=sum(hours for _, hours in done),
        saved=sum(hours * (entry.uses - 1) for entry, hours in done),
        predicted=sum(known) if known and len(known) == len(done) else None,
        device=", ".join(sorted({entry.device for entry, _ in done if entry.device})),
    )
