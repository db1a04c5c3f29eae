"""Cost: hours per stage kind, what sharing saved, and what each defense takes beside plain training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from harness.errors import StoreError
from harness.report.data.stage_records import StageRecord
from harness.report.stats.results import Results

if TYPE_CHECKING:
    from pandas import DataFrame

HOUR = 3600.0


class KindCost(NamedTuple):
    """The stages of one kind.

    Attributes:
        kind: their name.
        distinct: how many there are.
        finished: how many of them are in the store.
        unshared: how many there would be if every cell ran its own.
        hours: of one device, over the finished ones; times the processes of each, with attempts that failed.
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
    """What training costs under a defense.

    Attributes:
        defense: its name.
        seconds: of one device, mean over the finished stages, by kind.
        total: their sum.
        ratio: multiple of the baseline's, over the same tasks and models; None unless all kinds of both are known.
    """

    defense: str
    seconds: Mapping[str, float]
    total: float
    ratio: float | None


def kinds(findings: Results) -> list[KindCost]:
    """Return the cost of each stage kind, in the order of the chain."""
    by_kind: defaultdict[str, list[StageRecord]] = defaultdict(list)
    for entry in findings.ledger.values():
        by_kind[entry.kind].append(entry)
    return [_kind(kind, [(entry, _spent(findings, entry)) for entry in entries]) for kind, entries in by_kind.items()]


def overheads(findings: Results) -> list[Overhead]:
    """Return what training costs under each defense: the stages where a defense acts, mean over its cells."""
    told = []
    places = {str(defense): _places(findings, rows) for defense, rows in findings.rows.groupby("defense", sort=False)}
    plain = places.get(findings.baseline or "", {})
    for defense, rows in findings.rows.groupby("defense", sort=False):
        seconds = {kind: found for kind, found in _seconds(findings, rows).items() if found is not None}
        if seconds:
            told.append(Overhead(str(defense), seconds, sum(seconds.values()), _ratio(places[str(defense)], plain)))
    return told


def _ratio(mine: Mapping[Hashable, float | None], plain: Mapping[Hashable, float | None]) -> float | None:
    """Return a defense's seconds as a multiple of the baseline's, over the tasks and models that both have.

    None while any of their kinds of stages has no finished one: a sum without it would be too small.
    """
    pairs = [(mine[place], plain[place]) for place in mine if place in plain]
    known = [(own, beside) for own, beside in pairs if own and beside]
    if not known or len(known) < len(pairs):
        return None
    return sum(own for own, _ in known) / sum(beside for _, beside in known)


def _places(findings: Results, rows: DataFrame) -> dict[Hashable, float | None]:
    """Return the seconds of all kinds by task and model; None while a kind is not known."""
    found: dict[Hashable, float | None] = {}
    for place, block in rows.groupby(["task", "model"], sort=False, dropna=False):
        seconds = _seconds(findings, block).values()
        known = [each for each in seconds if each is not None]
        found[place] = sum(known) if len(known) == len(seconds) else None
    return found


def _seconds(findings: Results, rows: DataFrame) -> dict[str, float | None]:
    """Return the mean seconds of the stages of each kind that the rows have; None if none of them has finished."""
    means: dict[str, float | None] = {}
    for kind, columns in findings.training.items():
        keys = [key for key in rows[columns].melt()["value"].unique() if isinstance(key, str)]
        known = [found for key in keys if (found := _spent(findings, findings.ledger[key])) is not None]
        if keys:
            means[kind] = sum(known) / len(known) if known else None
    return means


def _spent(findings: Results, entry: StageRecord) -> float | None:
    """Return the device seconds of a finished stage, with those of its attempts that failed or were stopped."""
    if entry.seconds is None:
        return None
    try:
        attempts = findings.store.attempts(entry.key)
    except StoreError:
        attempts = []  # a damaged record of attempts hides no report
    earlier = sum(float(each.get("seconds") or 0.0) for each in attempts if each.get("outcome") != "executed")
    return (entry.seconds + earlier) * entry.processes


def _kind(kind: str, entries: list[tuple[StageRecord, float | None]]) -> KindCost:
    done = [(entry, spent / HOUR) for entry, spent in entries if spent is not None]
    known = [entry.predicted * entry.processes / HOUR for entry, _ in done if entry.predicted is not None]
    return KindCost(
        kind=kind,
        distinct=len(entries),
        finished=len(done),
        unshared=sum(entry.uses for entry, _ in entries),
        hours=sum(hours for _, hours in done),
        saved=sum(hours * (entry.uses - 1) for entry, hours in done),
        predicted=sum(known) if known and len(known) == len(done) else None,
        device=", ".join(sorted({entry.device for entry, _ in done if entry.device})),
    )
