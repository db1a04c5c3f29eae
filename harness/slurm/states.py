"""States of a sweep's stages: from the manifests in the store, attempt records, the job log and Slurm."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tenacity import Retrying, retry_if_result, stop_after_attempt, wait_chain, wait_fixed

from harness.engine.claim import is_abandoned, live_claims
from harness.engine.store import Store
from harness.errors import SchedulerError
from harness.execution.attempt import LOG
from harness.execution.state import Member, StageStatus
from harness.slurm.causes import cause_of, cause_of_end
from harness.slurm.client import NEVER, Ended, Queued, Scheduler, user
from harness.slurm.job_log import JobEntry, JobLog

_ACCOUNTING_PAUSES_SECONDS = (1.0, 2.0, 4.0)
"""Pauses between queries of accounting with ``patient``: under load it learns of a job's end seconds later."""


def states_of(
    members: Mapping[str, Member],
    store: Store,
    scheduler: Scheduler,
    *,
    sweep: str = "",
    leaves: Collection[str] | None = None,
    patient: bool = False,
) -> dict[str, StageStatus]:
    """Return the states of the stages of a sweep, by key.

    Args:
        members: the stages, parents before children.
        store: the store with manifests, attempt records and the job log.
        scheduler: queried at most three times, whatever the number of stages; more often with ``patient``.
        sweep: the sweep's id. If it was submitted, a stage without a job waits for the sweep's deferred submission, or
            is lost. Without an id, only the stages' own jobs count.
        leaves: keys of the requested stages; stages that no missing leaf needs are ``unneeded``. None is all stages
            that no other stage reads.
        patient: retry until accounting has records of jobs that have just left the queue.
    """
    stored = _stored(members, store)
    job_log = JobLog(store.root)
    written = list(job_log.entries()) if len(stored) < len(members) else []
    latest = {key: entry for entry in written for key in entry.keys}
    entries = {key: latest[key] for key in members if key in latest and key not in stored}
    deferred_entries = (entry for entry in reversed(written) if sweep and entry.sweep == sweep and not entry.keys)
    deferred = next(deferred_entries, None)
    others = [deferred] if deferred else []
    queue = _queue([*entries.values(), *others], scheduler)
    gone = {key: entry.job for key, entry in entries.items() if queue is not None and entry.job not in queue}
    # A job that ended between the two queries has stored its artifacts since the first.
    stored |= _stored({key: members[key] for key in gone}, store)
    ended = {job for key, job in gone.items() if key not in stored}
    ended |= {entry.job for entry in others if queue is not None and entry.job not in queue}
    inputs = _Inputs(
        store=store,
        entries=entries,
        queue=queue,
        history=_history(ended, scheduler, patient=patient),
        stored=stored,
        was_submitted=bool(sweep) and job_log.opened(sweep),
        deferred=deferred,
        left=job_log.left(deferred) if deferred and queue and deferred.job in queue else None,
        claimed=live_claims(store.claims),
        tried={path.stem for path in store.layout.attempts.glob("*.jsonl")},
    )
    states: dict[str, StageStatus] = {}
    needed = _needed(members, stored, leaves)
    for key, member in members.items():
        state = StageStatus(kind=member.kind, what="stored") if key in stored else inputs.state(key, member, states)
        not_expected = state.what in ("failed", "blocked", "lost") or (state.what == "pending" and not state.job)
        if not_expected and key not in needed:
            state = StageStatus(kind=member.kind, what="unneeded", message="all requested stages are stored without it")
        states[key] = state
    return states


def _needed(members: Mapping[str, Member], stored: Collection[str], leaves: Collection[str] | None) -> set[str]:
    """Return the leaves that are not stored, and all their ancestors."""
    read = {parent for member in members.values() for parent in member.parents}
    left = [key for key in members if key not in stored and (key not in read if leaves is None else key in leaves)]
    found: set[str] = set()
    while left:
        key = left.pop()
        if key in members and key not in found:
            found.add(key)
            left += members[key].parents
    return found


def release_hint(jobs: Sequence[str]) -> str:
    """Return a hint on how to release held jobs."""
    them = "it" if len(jobs) == 1 else "them"
    return f"`scontrol release {','.join(jobs)}` frees {them}, or `harness cancel` and `harness retry`"


def _stored(members: Mapping[str, Member], store: Store) -> set[str]:
    """Return the keys with a manifest, from one listing per kind instead of a query per stage."""
    found = store.layout.folders_by_key()
    return {key for key, member in members.items() if key in found and store.layout.manifest(member.kind, key).exists()}


def _queue(entries: Collection[JobEntry], scheduler: Scheduler) -> dict[str, Queued] | None:
    """Return the pending and running jobs; None if Slurm does not respond."""
    if not entries:
        return {}
    try:
        return scheduler.queue({entry.user for entry in entries} | {user()})
    except SchedulerError:
        return None


def _history(gone: Collection[str], scheduler: Scheduler, *, patient: bool) -> Mapping[str, Ended]:
    """Return the accounting records of jobs that left the queue."""
    if not gone:
        return {}
    pauses = _ACCOUNTING_PAUSES_SECONDS if patient else ()
    retrying = Retrying(
        retry=retry_if_result(lambda found: found is not None and len(found) < len(gone)),
        wait=wait_chain(*map(wait_fixed, pauses or (0.0,))),
        stop=stop_after_attempt(1 + len(pauses)),
        retry_error_callback=lambda last: last.outcome.result() if last.outcome else None,
    )
    return retrying(scheduler.history, gone) or {}


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """Everything that the states of stages are derived from, at one time."""

    store: Store
    entries: Mapping[str, JobEntry]
    queue: Mapping[str, Queued] | None
    history: Mapping[str, Ended]
    stored: Collection[str]
    was_submitted: bool
    deferred: JobEntry | None
    left: Collection[str] | None
    claimed: Collection[str]
    tried: Collection[str]

    def state(self, key: str, member: Member, before: Mapping[str, StageStatus]) -> StageStatus:
        entry = self.entries.get(key)
        queued = self.queue.get(entry.job) if entry and self.queue is not None else None
        if self._is_running(key, entry, queued):
            job, node = (entry.job, queued.nodes) if entry and queued else ("", "")
            return StageStatus(kind=member.kind, what="running", job=job, node=node)
        waiting = self._deferred_job(key, entry)
        if not waiting and (failure := self._failed_state(key, member, entry, queued)):
            return failure
        if blocked := self._blocked_state(member, entry, before):
            return blocked
        if waiting:
            return self._deferred_state(waiting, member)
        if entry and queued and (held := self._held_state(member, entry, queued, before)):
            return held
        return (
            self._queued_state(key, member, entry, queued) if queued and entry else self._missing_state(member, entry)
        )

    def _deferred_state(self, deferred: str, member: Member) -> StageStatus:
        queued = (self.queue or {})[deferred]
        message = f"job {deferred} will submit it"
        if queued.held:
            message += f" and is held by Slurm ({queued.reason}); {release_hint([deferred])}"
            return StageStatus(
                kind=member.kind, what="held", message=message, job=deferred, reason=queued.reason,
                held_by=deferred,
            )  # fmt: skip
        return StageStatus(kind=member.kind, what="pending", message=message, job=deferred)

    def _held_state(
        self, member: Member, entry: JobEntry, queued: Queued, before: Mapping[str, StageStatus]
    ) -> StageStatus | None:
        """Return the state of a stage whose job is held, or depends on a held job; None otherwise."""
        for parent in member.parents:
            if parent in before and before[parent].what == "held" and not queued.held and queued.state != "RUNNING":
                by = before[parent].held_by
                message = f"needs {before[parent].kind} `{parent}`, whose job {by} is held; {release_hint([by])}"
                return StageStatus(
                    kind=member.kind, what="held", message=message, job=entry.job, reason=queued.reason,
                    submitted=entry.submitted, held_by=by,
                )  # fmt: skip
        if not queued.held:
            return None
        message = f"job {entry.job} is held by Slurm ({queued.reason}); {release_hint([entry.job])}"
        return StageStatus(
            kind=member.kind, what="held", message=message, job=entry.job, reason=queued.reason,
            submitted=entry.submitted, held_by=entry.job,
        )  # fmt: skip

    def _is_running(self, key: str, entry: JobEntry | None, queued: Queued | None) -> bool:
        if key not in self.claimed:
            return False
        # A claim remains after its process was killed.
        ended = self.history.get(entry.job) if entry else None
        running = queued is not None and queued.state == "RUNNING"
        return running or not is_abandoned(self.store.claims, key, ended.nodes if ended else "")

    def _deferred_job(self, key: str, entry: JobEntry | None) -> str:
        """Return the id of the deferred submission that has yet to submit the stage; empty if there is none."""
        last = self.deferred
        if last is None or not self.queue or last.job not in self.queue:
            return ""
        if self.left is None:
            return "" if entry else last.job
        return last.job if key in self.left and (entry is None or entry.position < last.position) else ""

    def _blocked_state(
        self, member: Member, entry: JobEntry | None, before: Mapping[str, StageStatus]
    ) -> StageStatus | None:
        # In records of earlier versions, a parent may not be a member of the sweep.
        unavailable = [parent for parent in member.parents if parent in before and _will_not_be_stored(before[parent])]
        if unavailable:
            message = f"needs {before[unavailable[0]].kind} `{unavailable[0]}`, which is {before[unavailable[0]].what}"
            return StageStatus(kind=member.kind, what="blocked", message=message, job=entry.job if entry else "")
        return None

    def _missing_state(self, member: Member, entry: JobEntry | None) -> StageStatus:
        if entry is not None and self.queue is None:
            return StageStatus(kind=member.kind, what="pending", message="Slurm does not respond", job=entry.job)
        if entry is not None:
            return self._ended_state(member, entry)
        # The sweep was never submitted to Slurm.
        if self.queue is None or not self.was_submitted:
            return StageStatus(kind=member.kind, what="pending", message="not started")
        if self.deferred is None:
            return StageStatus(kind=member.kind, what="lost", message="no job will run it; `harness retry` submits it")
        job, log = self.deferred.job, self.deferred.log(self.store.root)
        ended = self.history.get(job)
        how = f" ({ended.state.lower()})" if ended else ""
        message = f"job {job}, which should have submitted it, has ended{how}; `harness retry` submits it"
        return StageStatus(kind=member.kind, what="lost", message=message, job=job, log=str(log))

    def _failed_state(
        self, key: str, member: Member, entry: JobEntry | None, queued: Queued | None
    ) -> StageStatus | None:
        """Return the failure recorded by the last attempt, unless the stage has a newer job; None otherwise."""
        attempts = self.store.attempts(key) if key in self.tried else []
        if not attempts or attempts[-1].get("outcome") != "failed":
            return None
        last = attempts[-1]
        job = last.get("job", "")
        # An attempt outside of any job counts if it was made after the submission, and the job is not in the queue.
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

    def _queued_state(self, key: str, member: Member, entry: JobEntry, queued: Queued) -> StageStatus:
        if queued.reason == NEVER:
            return StageStatus(kind=member.kind, what="blocked", message="a stage that it needs failed", job=entry.job)
        # A running job has no claim yet while it starts up.
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

    def _ended_state(self, member: Member, entry: JobEntry) -> StageStatus:
        ended = self.history.get(entry.job)
        log = str(entry.log(self.store.root))
        if ended is None:
            message = f"job {entry.job} is neither in the queue nor in accounting, and recorded no result"
            return StageStatus(kind=member.kind, what="lost", message=message, job=entry.job, log=log)
        cause, message = cause_of_end(ended, entry.log(self.store.root))
        return StageStatus(
            kind=member.kind, what="failed", cause=cause, message=message, job=entry.job, node=ended.nodes, log=log
        )


def _will_not_be_stored(state: StageStatus) -> bool:
    return state.what in ("failed", "blocked", "lost")
