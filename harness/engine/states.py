"""States: what became of each stage of a sweep, and why. The manifest decides; the scheduler is asked for the rest."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, NamedTuple

from harness.engine.attempt import LOG, MISSING_PARENT
from harness.engine.claim import claimed
from harness.engine.ledger import Entry, Ledger
from harness.engine.manifest import NAME as MANIFEST
from harness.engine.ranks import KILLED
from harness.engine.scheduler import NEVER, Ended, Queued, Scheduler, user
from harness.engine.store import Store
from harness.engine.worker import DRIFT, REQUEUES, TimeUp
from harness.errors import SchedulerError

What = Literal["stored", "running", "pending", "failed", "blocked", "lost"]
WHATS: tuple[What, ...] = ("stored", "running", "pending", "failed", "blocked", "lost")


class Cause(StrEnum):
    """Why a stage failed."""

    HOST_MEMORY = "out of memory"
    GPU_MEMORY = "out of GPU memory"
    TIME_LIMIT = "time limit"
    NODE_FAILURE = "node failure"
    PREEMPTION = "preempted"
    CANCELLED = "cancelled"
    CODE_ERROR = "code error"
    MISSING_PARENT = MISSING_PARENT
    KILLED = KILLED
    REQUEUES = REQUEUES
    DRIFT = DRIFT
    NO_MANIFEST = "ended without a result"


_OF_SLURM = {
    "OUT_OF_MEMORY": (Cause.HOST_MEMORY, "Slurm ended the job: it used more memory than it asked for."),
    "TIMEOUT": (Cause.TIME_LIMIT, "Slurm ended the job at its time limit."),
    "DEADLINE": (Cause.TIME_LIMIT, "Slurm ended the job at its deadline."),
    "NODE_FAIL": (Cause.NODE_FAILURE, "The node died."),
    "BOOT_FAIL": (Cause.NODE_FAILURE, "The node did not come up."),
    "PREEMPTED": (Cause.PREEMPTION, "A job of higher priority took the node."),
    "CANCELLED": (Cause.CANCELLED, "The job was cancelled."),
    "COMPLETED": (Cause.NO_MANIFEST, "Slurm calls the job completed, but it left no artifact."),
}
_OF_ERRORS = {
    "OutOfMemoryError": Cause.GPU_MEMORY,
    "MemoryError": Cause.HOST_MEMORY,
    TimeUp.__name__: Cause.TIME_LIMIT,
}
_KILL = 9
_TAIL = 4000
_LAGS_SECONDS = (1.0, 2.0, 4.0)
"""Pauses between the questions of a patient look: a busy accounting hears of an end seconds later."""


class Member(NamedTuple):
    """A stage of a sweep, as its record names it: the kind, and the keys of its parents."""

    kind: str
    parents: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class State:
    """What became of a stage.

    Attributes:
        kind: the stage's name.
        what: ``stored``; ``running``; ``pending``; ``failed``; ``blocked``, an ancestor will not be stored; ``lost``,
            its job is gone without a word.
        cause: why, for a failed one: a ``Cause``, or the name of the error that its user can mend.
        message: for the reader.
        job: the last job that was given the stage; empty for a local one.
        node: where it ran.
        log: the file to look into.
    """

    kind: str
    what: What
    cause: str = ""
    message: str = ""
    job: str = ""
    node: str = ""
    log: str = ""


def members_of(record: Mapping[str, Any]) -> dict[str, Member]:
    """Return the stages that a sweep's record names, parents before children."""
    return {key: Member(stage["kind"], stage["parents"]) for key, stage in record["stages"].items()}


def states_of(
    members: Mapping[str, Member],
    store: Store,
    scheduler: Scheduler,
    *,
    patient: bool = False,
    asked: bool = False,
) -> dict[str, State]:
    """Return what became of the stages of a sweep, by key.

    Args:
        members: the stages, parents before children.
        store: where manifests, attempts and the ledger lie.
        scheduler: is asked three times at most, whatever the number of stages.
        patient: give the accounting a moment to hear of jobs that have just left the queue.
        asked: whether Slurm was asked to run them, even if it has taken none.
    """
    stored = _stored(members, store)
    ledger = list(Ledger(store.root).entries()) if len(stored) < len(members) else []
    latest = {key: entry for entry in ledger for key in entry.keys}
    entries = {key: latest[key] for key in members if key in latest and key not in stored}
    continuations = {entry.job: entry for entry in ledger if not entry.keys}
    queue = _queue([*entries.values(), *continuations.values()], scheduler)
    gone = {key: entry.job for key, entry in entries.items() if queue is not None and entry.job not in queue}
    # A job that ended between the two looks has left its artifacts since the first.
    stored |= _stored({key: members[key] for key in gone}, store)
    history = _history({job for key, job in gone.items() if key not in stored}, scheduler, patient=patient)
    look = _Look(
        store=store,
        entries=entries,
        queue=queue,
        history=history,
        stored=stored,
        submitted=asked or not latest.keys().isdisjoint(members),
        continuation=next((job for job in continuations if queue and job in queue), ""),
        claimed=claimed(store.claims),
        tried={path.stem for path in (store.root / "attempts").glob("*.jsonl")},
    )
    states: dict[str, State] = {}
    for key, member in members.items():
        if key in stored:
            states[key] = State(kind=member.kind, what="stored")
        else:
            states[key] = look.state(key, member, states)
    return states


def _stored(members: Mapping[str, Member], store: Store) -> set[str]:
    """Return the keys that have a manifest: one listing a kind instead of one question a stage."""
    root = store.root / "artifacts"
    kinds = {member.kind for member in members.values()}
    found = {path.name for kind in kinds if (root / kind).is_dir() for path in (root / kind).iterdir()}
    return {key for key, member in members.items() if key in found and (root / member.kind / key / MANIFEST).exists()}


def _queue(entries: Collection[Entry], scheduler: Scheduler) -> dict[str, Queued] | None:
    """Return the jobs that have not ended; None if nobody can tell."""
    if not entries:
        return {}
    try:
        return scheduler.queue({entry.user for entry in entries} | {user()})
    except SchedulerError:
        return None


def _history(gone: Collection[str], scheduler: Scheduler, *, patient: bool) -> Mapping[str, Ended]:
    """Return how jobs ended that are no longer in the queue."""
    history = scheduler.history(gone) if gone else {}
    for pause in _LAGS_SECONDS if patient else ():
        if history is None or len(history) == len(gone):
            break
        time.sleep(pause)
        history = scheduler.history(gone)
    return history or {}


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What is known at one moment."""

    store: Store
    entries: Mapping[str, Entry]
    queue: Mapping[str, Queued] | None
    history: Mapping[str, Ended]
    stored: Collection[str]
    submitted: bool
    continuation: str
    claimed: Collection[str]
    tried: Collection[str]

    def state(self, key: str, member: Member, before: Mapping[str, State]) -> State:
        entry = self.entries.get(key)
        queued = self.queue.get(entry.job) if entry and self.queue is not None else None
        if entry is None and key in self.claimed:
            return State(kind=member.kind, what="running")
        if failure := self._failure(key, member, entry, queued):
            return failure
        if blocked := self._blocked(member, entry, before):
            return blocked
        return self._queued(key, member, entry, queued) if queued and entry else self._unheard(member, entry)

    def _blocked(self, member: Member, entry: Entry | None, before: Mapping[str, State]) -> State | None:
        # A record names the parents of all its stages, but an old one may lie outside of this sweep.
        bad = [parent for parent in member.parents if parent in before and _hopeless(before[parent])]
        if bad:
            message = f"needs {before[bad[0]].kind} `{bad[0]}`, which is {before[bad[0]].what}"
            return State(kind=member.kind, what="blocked", message=message, job=entry.job if entry else "")
        return None

    def _unheard(self, member: Member, entry: Entry | None) -> State:
        if entry is None:
            # A sweep that was never given to Slurm waits for whoever runs it.
            if self.continuation or self.queue is None or not self.submitted:
                return State(kind=member.kind, what="pending", message="not begun", job=self.continuation)
            return State(kind=member.kind, what="lost", message="no job will run it; `harness retry` goes on")
        if self.queue is None:
            return State(kind=member.kind, what="pending", message="Slurm does not answer", job=entry.job)
        return self._gone(member, entry)

    def _failure(self, key: str, member: Member, entry: Entry | None, queued: Queued | None) -> State | None:
        """The stage's own word on why it failed, unless it was given to another job since."""
        attempts = self.store.attempts(key) if key in self.tried else []
        if not attempts or attempts[-1]["outcome"] != "failed":
            return None
        last = attempts[-1]
        job = last.get("job", "")
        # An attempt outside of any job counts if it came after the job, and the job does not go on.
        if entry and job != entry.job and (job or queued or last["started"] < entry.submitted):
            return None
        cause = cause_of(last)
        log = self.store.work(key) / LOG
        return State(
            kind=member.kind,
            what="failed",
            cause=cause,
            message=last.get("message", ""),
            job=last.get("job", ""),
            node=last.get("node") or last.get("host", ""),
            log=str(log),
        )

    def _queued(self, key: str, member: Member, entry: Entry, queued: Queued) -> State:
        if queued.reason == NEVER:
            return State(kind=member.kind, what="blocked", message="what it needs failed", job=entry.job)
        # Before its first claim a job loads what it needs.
        next_up = next((other for other in entry.keys if other not in self.stored), None)
        running = queued.state == "RUNNING" and (key in self.claimed or key == next_up)
        return State(
            kind=member.kind,
            what="running" if running else "pending",
            message="" if running else f"{queued.state.lower()}, {queued.reason}".removesuffix(", None"),
            job=entry.job,
            node=queued.nodes,
        )

    def _gone(self, member: Member, entry: Entry) -> State:
        ended = self.history.get(entry.job)
        log = str(entry.log(self.store.root))
        if ended is None:
            message = f"job {entry.job} is neither in the queue nor in the accounting, and left no result"
            return State(kind=member.kind, what="lost", message=message, job=entry.job, log=log)
        cause, message = _OF_SLURM.get(
            ended.state, (Cause.CODE_ERROR, "The job failed before the stage could say why.")
        )
        if ended.state == "FAILED" and _KILL in (ended.signal, ended.exit_code, ended.exit_code - 128):
            cause, message = Cause.KILLED, "The process was killed (signal 9)."
            if _memory_in(entry.log(self.store.root)):
                cause, message = _OF_SLURM["OUT_OF_MEMORY"]
        return State(
            kind=member.kind, what="failed", cause=cause, message=message, job=entry.job, node=ended.nodes, log=log
        )


def cause_of(attempt: Mapping[str, Any]) -> str:
    """Return the cause that a failed attempt's record tells: a ``Cause``, or an error that the user can mend."""
    name = str(attempt.get("cause", ""))
    if name in _OF_ERRORS:
        return _OF_ERRORS[name]
    return Cause.CODE_ERROR if attempt.get("traceback") else name


def _memory_in(log: Path) -> bool:
    """Say whether Slurm noted in a job's output that it ended it for its memory: its state does not tell everywhere."""
    try:
        tail = log.read_text("utf-8", errors="replace")[-_TAIL:]
    except OSError:
        return False
    return "memory limit" in tail or "oom" in tail.lower()


def _hopeless(state: State) -> bool:
    return state.what in ("failed", "blocked", "lost")
