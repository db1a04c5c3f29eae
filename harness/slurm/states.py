"""States: what became of each stage of a sweep, and why. The manifest decides; the scheduler is asked for the rest."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tenacity import Retrying, retry_if_result, stop_after_attempt, wait_chain, wait_fixed

from harness.engine.claim import claimed, left_behind
from harness.engine.store import Store
from harness.errors import SchedulerError
from harness.execution.attempt import LOG
from harness.execution.state import Member, StageStatus
from harness.slurm.causes import cause_of, cause_of_end
from harness.slurm.client import NEVER, Ended, Queued, Scheduler, user
from harness.slurm.job_log import JobEntry, JobLog

_LAGS_SECONDS = (1.0, 2.0, 4.0)
"""Pauses between the questions of a patient look: a busy accounting hears of an end seconds later."""


def states_of(
    members: Mapping[str, Member],
    store: Store,
    scheduler: Scheduler,
    *,
    sweep: str = "",
    leaves: Collection[str] | None = None,
    patient: bool = False,
) -> dict[str, StageStatus]:
    """Return what became of the stages of a sweep, by key.

    Args:
        members: the stages, parents before children.
        store: where manifests, attempts and the ledger lie.
        scheduler: is asked three times at most, whatever the number of stages.
        sweep: whose stages they are. If it was submitted, a stage without a job waits for the sweep's continuation, or
            is lost. Without it only the stages' own jobs count.
        leaves: keys of what was asked for: what nobody needs who is not stored himself is not missed. None is all that
            no other member reads.
        patient: give the accounting a moment to hear of jobs that have just left the queue.
    """
    stored = _stored(members, store)
    ledger = JobLog(store.root)
    written = list(ledger.entries()) if len(stored) < len(members) else []
    latest = {key: entry for entry in written for key in entry.keys}
    entries = {key: latest[key] for key in members if key in latest and key not in stored}
    ours = (entry for entry in reversed(written) if sweep and entry.sweep == sweep and not entry.keys)
    continuation = next(ours, None)
    others = [continuation] if continuation else []
    queue = _queue([*entries.values(), *others], scheduler)
    gone = {key: entry.job for key, entry in entries.items() if queue is not None and entry.job not in queue}
    # A job that ended between the two looks has left its artifacts since the first.
    stored |= _stored({key: members[key] for key in gone}, store)
    ended = {job for key, job in gone.items() if key not in stored}
    ended |= {entry.job for entry in others if queue is not None and entry.job not in queue}
    look = _Look(
        store=store,
        entries=entries,
        queue=queue,
        history=_history(ended, scheduler, patient=patient),
        stored=stored,
        asked=bool(sweep) and ledger.opened(sweep),
        continuation=continuation,
        left=ledger.left(continuation) if continuation and queue and continuation.job in queue else None,
        claimed=claimed(store.claims),
        tried={path.stem for path in store.layout.attempts.glob("*.jsonl")},
    )
    states: dict[str, StageStatus] = {}
    needed = _needed(members, stored, leaves)
    for key, member in members.items():
        state = StageStatus(kind=member.kind, what="stored") if key in stored else look.state(key, member, states)
        missed = state.what in ("failed", "blocked", "lost") or (state.what == "pending" and not state.job)
        if missed and key not in needed:
            state = StageStatus(kind=member.kind, what="unneeded", message="what was asked for is stored without it")
        states[key] = state
    return states


def _needed(members: Mapping[str, Member], stored: Collection[str], leaves: Collection[str] | None) -> set[str]:
    """Return what has to be stored for the leaves that are not: these and all their ancestors, as a plan has it."""
    read = {parent for member in members.values() for parent in member.parents}
    left = [key for key in members if key not in stored and (key not in read if leaves is None else key in leaves)]
    found: set[str] = set()
    while left:
        key = left.pop()
        if key in members and key not in found:
            found.add(key)
            left += members[key].parents
    return found


def freeing(jobs: Sequence[str]) -> str:
    """Say what frees jobs that are held."""
    them = "it" if len(jobs) == 1 else "them"
    return f"`scontrol release {','.join(jobs)}` frees {them}, or `harness cancel` and `harness retry`"


def _stored(members: Mapping[str, Member], store: Store) -> set[str]:
    """Return the keys that have a manifest: one listing a kind instead of one question a stage."""
    found = store.layout.folders_by_key()
    return {key for key, member in members.items() if key in found and store.layout.manifest(member.kind, key).exists()}


def _queue(entries: Collection[JobEntry], scheduler: Scheduler) -> dict[str, Queued] | None:
    """Return the jobs that have not ended; None if nobody can tell."""
    if not entries:
        return {}
    try:
        return scheduler.queue({entry.user for entry in entries} | {user()})
    except SchedulerError:
        return None


def _history(gone: Collection[str], scheduler: Scheduler, *, patient: bool) -> Mapping[str, Ended]:
    """Return how jobs ended that are no longer in the queue."""
    if not gone:
        return {}
    pauses = _LAGS_SECONDS if patient else ()
    asking = Retrying(
        retry=retry_if_result(lambda found: found is not None and len(found) < len(gone)),
        wait=wait_chain(*map(wait_fixed, pauses or (0.0,))),
        stop=stop_after_attempt(1 + len(pauses)),
        retry_error_callback=lambda last: last.outcome.result() if last.outcome else None,
    )
    return asking(scheduler.history, gone) or {}


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What is known at one moment."""

    store: Store
    entries: Mapping[str, JobEntry]
    queue: Mapping[str, Queued] | None
    history: Mapping[str, Ended]
    stored: Collection[str]
    asked: bool
    continuation: JobEntry | None
    left: Collection[str] | None
    claimed: Collection[str]
    tried: Collection[str]

    def state(self, key: str, member: Member, before: Mapping[str, StageStatus]) -> StageStatus:
        entry = self.entries.get(key)
        queued = self.queue.get(entry.job) if entry and self.queue is not None else None
        if self._worked_on(key, entry, queued):
            job, node = (entry.job, queued.nodes) if entry and queued else ("", "")
            return StageStatus(kind=member.kind, what="running", job=job, node=node)
        waiting = self._waits(key, entry)
        if not waiting and (failure := self._failure(key, member, entry, queued)):
            return failure
        if blocked := self._blocked(member, entry, before):
            return blocked
        if waiting:
            return self._left_to(waiting, member)
        if entry and queued and (held := self._held(member, entry, queued, before)):
            return held
        return self._queued(key, member, entry, queued) if queued and entry else self._unheard(member, entry)

    def _left_to(self, continuation: str, member: Member) -> StageStatus:
        queued = (self.queue or {})[continuation]
        message = f"left to job {continuation}, which submits it"
        if queued.held:
            message += f" and is held by Slurm ({queued.reason}); {freeing([continuation])}"
            return StageStatus(
                kind=member.kind, what="held", message=message, job=continuation, reason=queued.reason,
                held_by=continuation,
            )  # fmt: skip
        return StageStatus(kind=member.kind, what="pending", message=message, job=continuation)

    def _held(
        self, member: Member, entry: JobEntry, queued: Queued, before: Mapping[str, StageStatus]
    ) -> StageStatus | None:
        """Say that a job is held, or waits for one that is."""
        for parent in member.parents:
            if parent in before and before[parent].what == "held" and not queued.held and queued.state != "RUNNING":
                by = before[parent].held_by
                message = f"needs {before[parent].kind} `{parent}`, whose job {by} is held; {freeing([by])}"
                return StageStatus(
                    kind=member.kind, what="held", message=message, job=entry.job, reason=queued.reason,
                    submitted=entry.submitted, held_by=by,
                )  # fmt: skip
        if not queued.held:
            return None
        message = f"job {entry.job} is held by Slurm ({queued.reason}); {freeing([entry.job])}"
        return StageStatus(
            kind=member.kind, what="held", message=message, job=entry.job, reason=queued.reason,
            submitted=entry.submitted, held_by=entry.job,
        )  # fmt: skip

    def _worked_on(self, key: str, entry: JobEntry | None, queued: Queued | None) -> bool:
        if key not in self.claimed:
            return False
        # A claim outlives a process that was killed.
        ended = self.history.get(entry.job) if entry else None
        running = queued is not None and queued.state == "RUNNING"
        return running or not left_behind(self.store.claims, key, ended.nodes if ended else "")

    def _waits(self, key: str, entry: JobEntry | None) -> str:
        """Return the sweep's continuation, if the stage was left to it and it has not come to submit it yet."""
        last = self.continuation
        if last is None or not self.queue or last.job not in self.queue:
            return ""
        if self.left is None:
            return "" if entry else last.job
        return last.job if key in self.left and (entry is None or entry.place < last.place) else ""

    def _blocked(self, member: Member, entry: JobEntry | None, before: Mapping[str, StageStatus]) -> StageStatus | None:
        # A record names the parents of all its stages, but an old one may lie outside of this sweep.
        bad = [parent for parent in member.parents if parent in before and _hopeless(before[parent])]
        if bad:
            message = f"needs {before[bad[0]].kind} `{bad[0]}`, which is {before[bad[0]].what}"
            return StageStatus(kind=member.kind, what="blocked", message=message, job=entry.job if entry else "")
        return None

    def _unheard(self, member: Member, entry: JobEntry | None) -> StageStatus:
        if entry is not None and self.queue is None:
            return StageStatus(kind=member.kind, what="pending", message="Slurm does not answer", job=entry.job)
        if entry is not None:
            return self._gone(member, entry)
        # A sweep that was never given to Slurm waits for whoever runs it.
        if self.queue is None or not self.asked:
            return StageStatus(kind=member.kind, what="pending", message="not begun")
        if self.continuation is None:
            return StageStatus(kind=member.kind, what="lost", message="no job will run it; `harness retry` goes on")
        job, log = self.continuation.job, self.continuation.log(self.store.root)
        ended = self.history.get(job)
        how = f" ({ended.state.lower()})" if ended else ""
        message = f"job {job}, which was to submit it, has ended{how}; `harness retry` goes on"
        return StageStatus(kind=member.kind, what="lost", message=message, job=job, log=str(log))

    def _failure(self, key: str, member: Member, entry: JobEntry | None, queued: Queued | None) -> StageStatus | None:
        """The stage's own word on why it failed, unless it was given to another job since."""
        attempts = self.store.attempts(key) if key in self.tried else []
        if not attempts or attempts[-1].get("outcome") != "failed":
            return None
        last = attempts[-1]
        job = last.get("job", "")
        # An attempt outside of any job counts if it came after the job, and the job does not go on.
        if entry and job != entry.job and (job or queued or len(attempts) <= entry.tried.get(key, 0)):
            return None
        cause = cause_of(last)
        log = self.store.work(key) / LOG
        return StageStatus(
            kind=member.kind,
            what="failed",
            cause=cause,
            message=last.get("message", ""),
            job=last.get("job", ""),
            node=last.get("node") or last.get("host", ""),
            log=str(log),
        )

    def _queued(self, key: str, member: Member, entry: JobEntry, queued: Queued) -> StageStatus:
        if queued.reason == NEVER:
            return StageStatus(kind=member.kind, what="blocked", message="what it needs failed", job=entry.job)
        # Before its first claim a job loads what it needs.
        next_up = next((other for other in entry.keys if other not in self.stored), None)
        running = queued.state == "RUNNING" and (key in self.claimed or key == next_up)
        return StageStatus(
            kind=member.kind,
            what="running" if running else "pending",
            message="" if running else f"{queued.state.lower()}, {queued.reason}".removesuffix(", None"),
            job=entry.job,
            node=queued.nodes,
            reason="" if running else queued.reason,
            submitted="" if running else entry.submitted,
        )

    def _gone(self, member: Member, entry: JobEntry) -> StageStatus:
        ended = self.history.get(entry.job)
        log = str(entry.log(self.store.root))
        if ended is None:
            message = f"job {entry.job} is neither in the queue nor in the accounting, and left no result"
            return StageStatus(kind=member.kind, what="lost", message=message, job=entry.job, log=log)
        cause, message = cause_of_end(ended, entry.log(self.store.root))
        return StageStatus(
            kind=member.kind, what="failed", cause=cause, message=message, job=entry.job, node=ended.nodes, log=log
        )


def _hopeless(state: StageStatus) -> bool:
    return state.what in ("failed", "blocked", "lost")
