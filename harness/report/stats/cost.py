"""Cost: device hours by stage kind, hours saved by sharing, and the overhead of each defense over plain training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from harness.errors import StoreError
from harness.report.data.stage_records import StageRecord
from harness.report.stats.results import Results

if TYPE_CHECKING:
    from pandas import DataFrame

HOUR = 3600.0


class KindCost(NamedTuple):
    """The cost of the stages of one kind.

    Attributes:
        kind: the stage kind.
        distinct: number of distinct stages.
        finished: number of stages that are stored.
        unshared: number of stages without sharing between cells.
        hours: device hours of finished stages (wall time times processes), failed attempts included.
        saved: device hours saved by sharing.
        predicted: predicted device hours of the finished stages; None unless all were predicted.
        device: the devices on which they ran.
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
    """The training cost of a defense.

    Attributes:
        defense: the defense's label.
        seconds: device seconds by stage kind: those of a cell together (all members of an ensemble, all experts of a
            fusion), averaged over cells.
        total: their sum.
        ratio: cost relative to the baseline on the same tasks and models; None unless all kinds of both are known.
    """

    defense: str
    seconds: Mapping[str, float]
    total: float
    ratio: float | None


def kinds(results: Results) -> list[KindCost]:
    """Return the cost of each stage kind, in the order of the chain."""
    by_kind: defaultdict[str, list[StageRecord]] = defaultdict(list)
    for entry in results.stage_records.values():
        by_kind[entry.kind].append(entry)
    return [
        _kind(kind, [(entry, _device_seconds(results, entry)) for entry in entries])
        for kind, entries in by_kind.items()
    ]


def overheads(results: Results) -> list[Overhead]:
    """Return the training cost of each defense: of the stages in which a defense can act, averaged over cells."""
    found = []
    costs = {str(defense): _by_block(results, rows) for defense, rows in results.rows.groupby("defense", sort=False)}
    baseline = costs.get(results.baseline or "", {})
    for defense, rows in results.rows.groupby("defense", sort=False):
        seconds = {kind: mean for kind, mean in _seconds(results, rows).items() if mean is not None}
        if seconds:
            found.append(Overhead(str(defense), seconds, sum(seconds.values()), _ratio(costs[str(defense)], baseline)))
    return found


def _ratio(costs: Mapping[Hashable, float | None], baseline: Mapping[Hashable, float | None]) -> float | None:
    """Return the cost of a defense relative to the baseline, over the tasks and models that both have.

    None if any of their stage kinds has no finished stage: the sum would be too small.
    """
    pairs = [(costs[block], baseline[block]) for block in costs if block in baseline]
    known = [(cost, reference) for cost, reference in pairs if cost and reference]
    if not known or len(known) < len(pairs):
        return None
    return sum(cost for cost, _ in known) / sum(reference for _, reference in known)


def _by_block(results: Results, rows: DataFrame) -> dict[Hashable, float | None]:
    """Return the device seconds of all kinds by task and model; None if a kind has no finished stage."""
    found: dict[Hashable, float | None] = {}
    for block, members in rows.groupby(["task", "model"], sort=False, dropna=False):
        found[block] = _sum(list(_seconds(results, members).values()))
    return found


def _seconds(results: Results, rows: DataFrame) -> dict[str, float | None]:
    """Return the device seconds of a cell's stages of each kind together, mean over cells that do not share them.

    None if there is no cell of which all are finished.
    """
    means: dict[str, float | None] = {}
    for kind, columns in results.training.items():
        cells = rows[columns].itertuples(index=False, name=None)
        together = dict.fromkeys(tuple(dict.fromkeys(key for key in cell if isinstance(key, str))) for cell in cells)
        together.pop((), None)
        sums = [_sum([_whole_seconds(results, results.stage_records[key]) for key in keys]) for keys in together]
        known = [each for each in sums if each is not None]
        if together:
            means[kind] = sum(known) / len(known) if known else None
    return means


def _whole_seconds(results: Results, entry: StageRecord) -> float | None:
    """Return the device seconds of a finished stage and of the stages that it was made of, see ``StageRecord``."""
    own = _device_seconds(results, entry)
    if own is None:
        return None
    return own + sum(_device_seconds(results, results.stage_records[key]) or 0.0 for key in entry.made_of)


def _sum(seconds: Sequence[float | None]) -> float | None:
    known = [each for each in seconds if each is not None]
    return sum(known) if len(known) == len(seconds) else None


def _device_seconds(results: Results, entry: StageRecord) -> float | None:
    """Return the device seconds of a finished stage, failed and stopped attempts included."""
    if entry.seconds is None:
        return None
    try:
        attempts = results.store.attempts(entry.key)
    except StoreError:
        attempts = []  # a damaged attempt log must not fail the report
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
