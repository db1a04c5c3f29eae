"""What can be done about a sweep that was asked for: see how it stands, submit it again, end it, clear up after it."""

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.engine.gc import record_problem, with_ancestors
from harness.engine.lookup import resolve_key
from harness.engine.store import Store
from harness.errors import SchedulerError, StoreError
from harness.execution.attempt import LOG
from harness.execution.state import WHATS, State, members_of
from harness.slurm.client import Scheduler, SlurmClient, user
from harness.slurm.job_log import JobLog
from harness.slurm.lock import is_locked
from harness.slurm.states import states_of
from harness.sweep.record import recorded

SAMPLE = 50
"""Manifests of a kind that an estimate of the time left reads."""


def nobody(text: str) -> None:
    """Tell nobody."""
    del text


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
    record = recorded(root, name)
    asked = scheduler or SlurmClient()
    states = states_of(members_of(record), root, asked, sweep=record["id"])
    counts: dict[str, Counter[str]] = {}
    for state in states.values():
        counts.setdefault(state.kind, Counter())[state.what] += 1
    return Status(
        sweep=record["id"],
        counts={kind: {what: count[what] for what in WHATS} for kind, count in counts.items()},
        states=states,
        seconds_left=_seconds_left(states, root),
        cancelled=JobLog(root.root).cancelled(record["id"]),
        strays=_strays(record["id"], root, asked),
        damage=[*_damage(record["id"], root), *(_unreadable(states, root) if thorough else ())],
    )


def _strays(sweep: str, root: Store, scheduler: Scheduler) -> list[str]:
    ledger = JobLog(root.root)
    # While somebody submits, the answer for a job may be on its way.
    if not ledger.opened(sweep) or is_locked(root):
        return []
    try:
        return sorted(ledger.orphans(scheduler.queue({user()}), sweep))
    except SchedulerError:
        return []


def _damage(sweep: str, root: Store) -> list[str]:
    """Return what of the ledgers, and of the records of other sweeps, cannot be read."""
    ledger = JobLog(root.root)
    list(ledger.entries())
    others = [other for other in root.sweep_ids() if other != sweep]
    return [*ledger.damage, *(why for other in others if (why := record_problem(root, other)))]


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
    key = resolve_key(root, prefix)
    entry = JobLog(root.root).latest().get(key)
    paths = [
        root.work(key) / LOG,
        *([entry.log(root.root, stream) for stream in ("out", "err")] if entry else []),
    ]
    found = [(path, path.read_text("utf-8", errors="replace")) for path in paths if path.exists()]
    if not found:
        raise StoreError(f"`{key}` has no log in `{root.root}`: no attempt of it has begun.")
    yield from ((path, text) for path, text in found if text)


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
