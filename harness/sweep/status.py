"""Status of a sweep: the states of its stages, time left, and logs."""

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
from harness.execution.state import SWEEP_STATES, StageStatus, members_of
from harness.slurm.client import Scheduler, SlurmClient, user
from harness.slurm.job_log import JobLog
from harness.slurm.lock import is_locked
from harness.slurm.states import states_of
from harness.sweep.record import read_record

SAMPLE = 50
"""Maximum number of manifests per kind that the estimate of the time left reads."""


def ignore(text: str) -> None:
    """Discard a message."""
    del text


@dataclass(frozen=True, kw_only=True)
class Status:
    """Status of a sweep.

    Attributes:
        sweep: its id.
        counts: number of stages by kind and state.
        states: state of every stage, by key.
        seconds_left: estimated from the durations of stored stages of the same kind and the number of stages that are
            running; None if no such stage is stored, or none is running.
        cancelled: whether it was cancelled.
        strays: jobs of the sweep in the queue that no job log lists, because their submission was interrupted.
        damage: messages about files of the store that could not be read.
    """

    sweep: str
    counts: Mapping[str, Mapping[str, int]]
    states: Mapping[str, StageStatus]
    seconds_left: float | None
    cancelled: bool
    strays: Sequence[str] = ()
    damage: Sequence[str] = ()

    @property
    def over(self) -> bool:
        """Whether no stage is running or pending in a job."""
        return not any(
            state.what == "running" or (state.what == "pending" and state.job) for state in self.states.values()
        )


def status(root: Store, name: str | None, scheduler: Scheduler | None = None, *, thorough: bool = True) -> Status:
    """Return the status of a sweep.

    Args:
        root: the store.
        name: id of the sweep, or a prefix of it; None is the latest.
        scheduler: replaces Slurm in tests.
        thorough: also read the manifests of stored stages and the specs of all others, to find damaged ones.

    Raises:
        StoreError: there is no such sweep.
    """
    record = read_record(root, name)
    scheduler = scheduler or SlurmClient()
    states = states_of(members_of(record), root, scheduler, sweep=record["id"])
    counts: dict[str, Counter[str]] = {}
    for state in states.values():
        counts.setdefault(state.kind, Counter())[state.what] += 1
    return Status(
        sweep=record["id"],
        counts={kind: {what: count[what] for what in SWEEP_STATES} for kind, count in counts.items()},
        states=states,
        seconds_left=_seconds_left(states, root),
        cancelled=JobLog(root.root).cancelled(record["id"]),
        strays=_strays(record["id"], root, scheduler),
        damage=[*_damage(record["id"], root), *(_unreadable(states, root) if thorough else ())],
    )


def _strays(sweep: str, root: Store, scheduler: Scheduler) -> list[str]:
    job_log = JobLog(root.root)
    # During a submission, a job may be in the queue before it is in the job log.
    if not job_log.opened(sweep) or is_locked(root):
        return []
    try:
        return sorted(job_log.orphans(scheduler.queue({user()}), sweep))
    except SchedulerError:
        return []


def _damage(sweep: str, root: Store) -> list[str]:
    """Return messages about damaged lines of the job logs and damaged records of other sweeps."""
    job_log = JobLog(root.root)
    list(job_log.entries())
    others = [other for other in root.sweep_ids() if other != sweep]
    return [*job_log.damage, *(why for other in others if (why := record_problem(root, other)))]


def _unreadable(states: Mapping[str, StageStatus], root: Store) -> list[str]:
    """Return messages about unreadable manifests of stored stages and unreadable specs of others."""
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
    """Yield the path and text of a stage's logs: of its attempts, and the output of its last job.

    Raises:
        StoreError: no stage, or more than one, has a key with this prefix, or it has never run.
    """
    key = resolve_key(root, prefix)
    entry = JobLog(root.root).latest().get(key)
    paths = [
        root.work(key) / LOG,
        *([entry.log(root.root, stream) for stream in ("out", "err")] if entry else []),
    ]
    found = [(path, path.read_text("utf-8", errors="replace")) for path in paths if path.exists()]
    if not found:
        raise StoreError(f"`{key}` has no log in `{root.root}`: it has never been attempted.")
    yield from ((path, text) for path, text in found if text)


def _seconds_left(states: Mapping[str, StageStatus], store: Store) -> float | None:
    """Return mean duration times remaining stages, summed over kinds, divided by the number of running stages."""
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
        # Unreadable manifests are left out of the estimate.
        with suppress(StoreError):
            yield store.manifest(key).seconds
