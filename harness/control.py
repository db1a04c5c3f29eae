"""What can be done about a sweep that was asked for: see how it stands, submit it again, end it, clear up after it."""

import statistics
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from harness.engine.attempt import LOG
from harness.engine.collect import Garbage, Needed, named, remove, unneeded, unreadable, with_ancestors
from harness.engine.ledger import Entry, Ledger
from harness.engine.naming import key_named, sweep_named
from harness.engine.plan import Plan
from harness.engine.scheduler import Scheduler, Slurm, user
from harness.engine.stage import Stage, lineage
from harness.engine.states import WHATS, State, members_of, states_of
from harness.engine.store import Store
from harness.engine.turn import submitting, submitting_if_possible, taken
from harness.errors import DamagedArtifact, SchedulerError, StagesFailed, StoreError
from harness.record import place_of, plan_of, store_of
from harness.sweep import Front, Planned, executed

SAMPLE = 50
"""Manifests of a kind that an estimate of the time left reads."""


def nobody(text: str) -> None:
    """Tell nobody."""
    del text


class Cancelled(NamedTuple):
    """A sweep that was cancelled: the jobs that were ended, and those that another sweep needs."""

    sweep: str
    ended: list[str]
    spared: list[str]


@dataclass(frozen=True, kw_only=True)
class Status:
    """How a sweep stands.

    Attributes:
        sweep: its id.
        counts: how many stages of each kind are stored, running, pending, failed, blocked and lost.
        states: of every stage, by key.
        seconds_left: an estimate, from how long stages of the same kind took and how many run now; None if nothing
            is known, or nothing runs.
        cancelled: whether somebody cancelled it.
        strays: jobs of the sweep in the queue that no ledger names: their submission was interrupted.
        damage: what of the store could not be read, a sentence each.
    """

    sweep: str
    counts: Mapping[str, Mapping[str, int]]
    states: Mapping[str, State]
    seconds_left: float | None
    cancelled: bool
    strays: Sequence[str] = ()
    damage: Sequence[str] = ()

    @property
    def over(self) -> bool:
        """Whether nothing runs or waits for its turn."""
        return not any(
            state.what == "running" or (state.what == "pending" and state.job) for state in self.states.values()
        )


def status(root: Store, name: str | None, scheduler: Scheduler | None = None, *, thorough: bool = True) -> Status:
    """Return how a sweep stands; the latest one if none is named.

    Args:
        root: the store.
        name: the sweep's id or how it begins.
        scheduler: Slurm, unless a test stands in for it.
        thorough: also read the manifest of every stored stage and the spec of every other, to find what is damaged.

    Raises:
        StoreError: there is no such sweep.
    """
    record = _recorded(root, name)
    asked = scheduler or Slurm()
    states = states_of(members_of(record), root, asked, sweep=record["id"])
    counts: dict[str, Counter[str]] = {}
    for state in states.values():
        counts.setdefault(state.kind, Counter())[state.what] += 1
    return Status(
        sweep=record["id"],
        counts={kind: {what: count[what] for what in WHATS} for kind, count in counts.items()},
        states=states,
        seconds_left=_seconds_left(states, root),
        cancelled=Ledger(root.root).cancelled(record["id"]),
        strays=_strays(record["id"], root, asked),
        damage=[*_damage(record["id"], root), *(_unreadable(states, root) if thorough else ())],
    )


def _strays(sweep: str, root: Store, scheduler: Scheduler) -> list[str]:
    ledger = Ledger(root.root)
    # While somebody submits, the answer for a job may be on its way.
    if not ledger.opened(sweep) or taken(root):
        return []
    try:
        return sorted(ledger.strays(scheduler.queue({user()}), sweep))
    except SchedulerError:
        return []


def _damage(sweep: str, root: Store) -> list[str]:
    """Return what of the ledgers, and of the records of other sweeps, cannot be read."""
    ledger = Ledger(root.root)
    list(ledger.entries())
    others = [other for other in root.sweep_ids() if other != sweep]
    return [*ledger.damage, *(why for other in others if (why := unreadable(root, other)))]


def _unreadable(states: Mapping[str, State], root: Store) -> list[str]:
    """Return which manifests of stored stages, and specs of others, cannot be read."""
    found: list[str] = []
    for key, state in states.items():
        if state.what == "stored":
            try:
                root.manifest(key)
            except StoreError as error:
                found.append(str(error))
    with_ancestors(
        root, [key for key, state in states.items() if state.what not in ("stored", "unneeded")], found.append
    )
    return found


def logs(root: Store, prefix: str) -> Iterator[tuple[Path, str]]:
    """Return the logs of a stage's last attempt: what the house logged, and what its job printed.

    Raises:
        StoreError: no stage, or more than one, has a key that begins so, or it has never run.
    """
    key = key_named(root, prefix)
    entry = Ledger(root.root).latest().get(key)
    paths = [
        root.work(key) / LOG,
        *([entry.log(root.root, stream) for stream in ("out", "err")] if entry else []),
    ]
    found = [(path, path.read_text("utf-8", errors="replace")) for path in paths if path.exists()]
    if not found:
        raise StoreError(f"`{key}` has no log in `{root.root}`: no attempt of it has begun.")
    yield from ((path, text) for path, text in found if text)


def retry(root: Store, name: str | None, changes: Mapping[str, object], front: Front) -> None:
    """Submit again what is not stored, by the causes of its failures; damaged artifacts are set aside for it.

    Args:
        root: the store.
        name: the sweep's id or how it begins; None is the latest.
        changes: settings of the cluster or the tracker to change, by dotted name.
        front: is told.

    Raises:
        StoreError: there is no such sweep, or its specs cannot be read.
        ConfigError: a change is wrong.
        StagesFailed: a stage failed again, or is refused.
    """
    record = _recorded(root, name)
    # A retry returns, whatever the run did; `cluster.wait=true` among the changes makes it stay.
    stays = {"cluster.wait": False} if "wait" in record["place"]["cluster"] else {}
    place = place_of(record, {**stays, **changes})
    store = store_of(root, record)
    plan = plan_of(store, record)
    if place.cluster.rehearsing:
        for stage in _damaged(plan, store):
            front.say(f"the artifact of {stage.name} {stage.key} is damaged; a retry sets it aside")
    else:
        # Of two retries at once, the second finds what the first has set aside.
        with submitting(store, front.say):
            for stage in _damaged(plan, store):
                aside = store.set_aside(stage)
                front.say(f"the artifact of {stage.name} {stage.key} is damaged; it lies in {aside} now")
        Ledger(store.root).cancel(record["id"], undo=True)
    planned = Planned.of(record["id"], plan, store, place.cluster, cells=len(record["cells"]))
    front.planned(planned)
    outcome = executed(planned, plan, store, place, front)
    if not outcome.complete:
        raise StagesFailed(f"{len(outcome.failed)} stages failed or are refused, {len(outcome.blocked)} are blocked")


def cancel(
    root: Store, name: str | None, scheduler: Scheduler | None = None, tell: Callable[[str], None] = nobody
) -> Cancelled:
    """End the jobs of a sweep that no other sweep needs; needs no space on the disk.

    Args:
        root: the store.
        name: the sweep's id or how it begins; None is the latest.
        scheduler: Slurm, unless a test stands in for it.
        tell: is told what is waited for, and what could not be read or written.

    Raises:
        StoreError: there is no such sweep.
        SchedulerError: Slurm does not answer.
    """
    asked = scheduler or Slurm()
    sweep = sweep_named(root, name)
    ledger = Ledger(root.root)
    # A submission under way sees the mark and stops; only then is it known which jobs there are.
    try:
        ledger.cancel(sweep)
    except StoreError as error:
        tell(f"{error} The jobs are ended; that the sweep was cancelled is not noted, so cancel it again then.")
    with submitting_if_possible(root, tell):
        queue = asked.queue({entry.user for entry in ledger.entries()} | {user()})
        known = set(root.sweep_ids())
        others = [other for other in ledger.sweeps() if other != sweep and other in known]
        needed = set().union(*(_needed_by(other, root, ledger, tell) for other in others))
        left = _left_to(sweep, root, ledger, others)
        ours = {entry.job: set(entry.keys) for entry in (*ledger.entries(sweep), *left) if entry.job in queue}
        ours |= {job: set() for job in ledger.strays(queue, sweep)}
        spared = {job for job, keys in ours.items() if needed.intersection(keys)}
        asked.cancel(ours.keys() - spared)
        for problem in ledger.damage:
            tell(problem)
    return Cancelled(sweep, sorted(ours.keys() - spared), sorted(spared))


def _needed_by(sweep: str, root: Store, ledger: Ledger, tell: Callable[[str], None]) -> set[str]:
    """Return the keys that a sweep needs; of one whose record is damaged, what was submitted for it and its parents."""
    if not (why := unreadable(root, sweep)):
        return named(root.read_sweep(sweep))
    tell(f"{why} Jobs that only it needs may be ended.")
    return with_ancestors(root, [key for entry in ledger.entries(sweep) for key in entry.keys], tell)


def collect(
    root: Store,
    *,
    seconds: float,
    dry_run: bool,
    scheduler: Scheduler | None = None,
    tell: Callable[[str], None] = nobody,
) -> Iterator[Garbage]:
    """Remove what no sweep names, nothing works on and nobody touched for so long; return each folder.

    What cannot be known stays: all artifacts, if the record of a sweep is damaged, or if a job is in the queue of which
    no ledger knows what it runs.

    Args:
        root: the store.
        seconds: how long a folder must have been left alone.
        dry_run: only say what would go.
        scheduler: Slurm, unless a test stands in for it.
        tell: is told what is waited for, and what could not be read.

    Raises:
        StoreError: there is no such store, or it cannot be written.
    """
    if not root.root.is_dir():
        raise StoreError(f"There is no store `{root.root}`. Name another one with --store.")
    with ExitStack() as turn:
        mine = turn.enter_context(submitting_if_possible(root, tell))
        queued, problems = _queued(root, scheduler or Slurm())
        needed = Needed(root, queued=queued)
        found = list(unneeded(root, needed.keys(), seconds=seconds))
        problems += [f"{why} What it may name stays." for why in needed.damage]
        for problem in problems:
            tell(problem)
        for garbage in found:
            # A sweep that runs here may have been asked for since.
            if garbage.what != "damaged" and (problems or garbage.path.name in needed):
                continue
            if not dry_run:
                remove(root, garbage)
                # From the first bytes on there is room for somebody else's turn, so for this one's.
                mine = mine or turn.enter_context(submitting_if_possible(root, tell))
            yield garbage


def _recorded(root: Store, name: str | None) -> dict[str, Any]:
    sweep = sweep_named(root, name)
    again = "Run the command of the sweep again, which writes it anew; what is stored stays."
    if why := unreadable(root, sweep):
        raise StoreError(f"{why} {again}")
    record = root.read_sweep(sweep)
    if not {"stages", "place"} <= record.keys():
        raise StoreError(f"The record of `{sweep}` is of an earlier version and does not name its stages. {again}")
    return record


def _left_to(sweep: str, root: Store, ledger: Ledger, others: Collection[str]) -> list[Entry]:
    """Return the jobs of this user that sweeps which were cancelled before have left to this one."""
    if unreadable(root, sweep):
        return []
    stages = named(root.read_sweep(sweep))
    return [
        entry
        for entry in ledger.entries()
        if entry.sweep not in others and entry.user == user() and not stages.isdisjoint(entry.keys)
    ]


def _queued(root: Store, scheduler: Scheduler) -> tuple[set[str], list[str]]:
    """Return the keys of stages whose jobs are in the queue, and why that may not be all of them."""
    ledger = Ledger(root.root)
    entries = ledger.latest()
    if not entries and not ledger.damage:
        return set(), []
    try:
        queue = scheduler.queue({entry.user for entry in entries.values()} | {user()})
    except SchedulerError as error:
        # Nobody can say that its jobs have ended, so all that was ever submitted stays.
        unknown = [f"{error} Nobody can say whether jobs are left that the ledger does not name."]
        return set(entries), unknown if ledger.damage else []
    strays = ", ".join(sorted(ledger.strays(queue)))
    problems = [f"No ledger names what the jobs {strays} run, so that all stays while they are in the queue."]
    return {key for key, entry in entries.items() if entry.job in queue}, problems if strays else []


def _damaged(plan: Plan, store: Store) -> Iterator[Stage]:
    """Find stored results, and ancestors of stages that met a damaged artifact, that are damaged at this moment."""
    met = tuple(stage for stage in plan.pending(store) if _cause(stage, store) == DamagedArtifact.__name__)
    for stage in {stage.key: stage for stage in (*lineage(met), *plan.leaves)}.values():
        if not store.has(stage):
            continue
        try:
            store.path(stage)
        except DamagedArtifact:
            yield stage


def _cause(stage: Stage, store: Store) -> str:
    attempts = store.attempts(stage.key)
    return str(attempts[-1].get("cause", "")) if attempts else ""


def _seconds_left(states: Mapping[str, State], store: Store) -> float | None:
    """Estimate from a sample of what is stored: seconds of a stage of each kind, over as many as run now."""
    running = sum(state.what == "running" for state in states.values())
    left = Counter(state.kind for state in states.values() if state.what in ("running", "pending"))
    stored: dict[str, list[str]] = {}
    for key, state in states.items():
        if state.what == "stored":
            stored.setdefault(state.kind, []).append(key)
    if not running or any(kind not in stored for kind in left):
        return None
    known = {kind: list(_seconds(stored[kind][:SAMPLE], store)) for kind in left}
    if not all(known.values()):
        return None
    return sum(statistics.mean(known[kind]) * count for kind, count in left.items()) / running


def _seconds(keys: Sequence[str], store: Store) -> Iterator[float]:
    for key in keys:
        # An estimate does not stop at a manifest that cannot be read.
        with suppress(StoreError):
            yield store.manifest(key).seconds
