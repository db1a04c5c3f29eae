"""The Slurm executor: submits the pending stages of a plan as a graph of dependent jobs, and returns.

No process has to stay alive: Slurm keeps the dependencies, the store the frozen specs, and success is a manifest. Jobs
are recorded in the job log, so that later submissions, of other sweeps or users, depend on them instead of running a
stage twice.
"""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tenacity import (
    Retrying,
    before_sleep_log,
    retry_if_exception_type,
    stop_after_attempt,
    wait_chain,
    wait_fixed,
)

from harness.engine.claim import Claims
from harness.engine.plan import Plan
from harness.engine.provenance import Stopwatch, source_digest
from harness.engine.stage import Stage, lineage
from harness.engine.store import Store
from harness.engine.tracker import TrackerSettings
from harness.errors import Interrupted, SchedulerError, StoreError
from harness.execution.attempt import WorkerContext, record
from harness.execution.executor import Event, Failure, Outcome, ignore_event
from harness.execution.state import EventState, Member, StageStatus
from harness.slurm.client import Scheduler
from harness.slurm.job_log import JobLog
from harness.slurm.lock import submission_lock
from harness.slurm.states import states_of
from harness.slurm.submission import Submission, Superseded
from harness.slurm.worker import DRIFT, DRIFTED, JobFailed, job_id

if TYPE_CHECKING:
    from harness.slurm.settings import Slurm

log = logging.getLogger(__name__)
RETRY_PAUSES_SECONDS = (5.0, 10.0, 20.0, 40.0, 80.0)
"""Pauses between the attempts of a deferred submission while Slurm does not respond; fits into its time limit."""


@dataclass(frozen=True, kw_only=True)
class SlurmExecutor:
    """Submits a plan to Slurm.

    Attributes:
        site: the cluster's settings.
        scheduler: Slurm, or a dry run.
        sweep: the sweep's id.
        tracker: opens the curve of each stage.
        prepare: called once in every process that runs stages, before its first stage, with the number of CPU threads;
            picklable.
        on_event: called with every event of a stage.
        wait: block until every stage has ended.
        poll_seconds: interval between polls while waiting.
        only: keys to submit, for a deferred submission; None submits all pending stages.
        code: digest of the code that the jobs must run; empty for the running code.
    """

    site: "Slurm"
    scheduler: Scheduler
    sweep: str
    tracker: TrackerSettings
    prepare: Callable[[int | None], None]
    on_event: Callable[[Event], None] = ignore_event
    wait: bool = False
    poll_seconds: float = 5.0
    only: frozenset[str] | None = None
    code: str = ""

    def run(self, plan: Plan, store: Store) -> Outcome:
        """Submit the stages of a plan that are neither stored nor queued.

        Raises:
            StoreError: the store cannot be written, or Slurm cannot use its path.
            SchedulerError: Slurm rejected a job or does not respond; jobs submitted before stay submitted.
            Interrupted: the sweep was cancelled, or the user pressed Ctrl-C; submitted jobs stay submitted.
        """
        pending = plan.pending(store)
        stored = tuple(stage.key for stage in plan.stages if store.has(stage))
        if not pending:
            return Outcome(stored=stored)
        if "%" in str(store.root):
            raise StoreError(
                f"The path of the store `{store.root}` contains a %, which Slurm would expand; move the store."
            )
        dry_run = self.scheduler.dry_run
        if not dry_run:
            store.prepare()
            store.register(plan.stages)
        leaves = tuple(leaf.key for leaf in plan.leaves)
        code = self.code or source_digest(store.allow)

        def defer(keys: frozenset[str]) -> DeferredSubmission:
            executor = replace(self, on_event=ignore_event, wait=False, only=keys, code=code)
            return DeferredSubmission(executor, store.root, store.allow, leaves)

        def waiting(stage: Stage, text: str) -> None:
            self._emit("busy", stage, plan, len(stored), message=text)

        try:
            while True:
                # A dry run queues nothing and needs no lock.
                lock_context = nullcontext() if dry_run else submission_lock(store, partial(waiting, pending[0]))
                with lock_context as lock:
                    submission = Submission(
                        site=self.site,
                        scheduler=self.scheduler,
                        sweep=self.sweep,
                        tracker=self.tracker,
                        deferred_job=defer,
                        prepare=self.prepare,
                        only=self.only,
                        waiting=waiting,
                        held=lock.held if lock else _always,
                        code=code,
                        plan=plan,
                        store=store,
                    )
                    try:
                        submission.run()
                        break
                    except Superseded:
                        waiting(pending[0], "another process submitted while this one was suspended; starting over")
            submitted = {key: entry.job for key, entry in submission.jobs.items()}
            for stage in pending:
                if stage.key in submitted:
                    self._emit("pending", stage, plan, len(stored), message=submitted[stage.key])
            outcome = Outcome(
                stored=stored,
                submitted=submitted,
                found=submission.found,
                calls=submission.calls,
                left=submission.left,
                scripts=submission.folder if dry_run else None,
                failed=submission.refused,
                blocked=submission.blocked,
            )
            return self._wait(plan, store, outcome) if self.wait else outcome
        except KeyboardInterrupt:
            raise Interrupted(f"Stopped. Submitted jobs go on; `harness cancel {self.sweep}` ends them.") from None

    def _wait(self, plan: Plan, store: Store, outcome: Outcome) -> Outcome:
        """Poll until no stage of the plan is pending or running."""
        stored = set(outcome.stored)
        stages = {stage.key: stage for stage in plan.stages if stage.key not in stored}
        members = {key: Member(stage.name, [parent.key for parent in stage.parents]) for key, stage in stages.items()}
        leaves = {leaf.key for leaf in plan.leaves}
        done: set[str] = set()
        reported: set[str] = set()
        while True:
            states = states_of(members, store, self.scheduler, sweep=self.sweep, leaves=leaves, patient=True)
            for key in [key for key, state in states.items() if state.what == "stored" and key not in done]:
                done.add(key)
                seconds_taken = store.manifest(key).seconds
                self._emit("executed", stages[key], plan, len(stored) + len(done), seconds=seconds_taken)
            for key in [key for key in _failures(states) if key not in reported and key not in outcome.failed]:
                reported.add(key)
                self._emit("failed", stages[key], plan, len(stored) + len(done), message=states[key].message)
            under_way = [key for key, state in states.items() if state.what in ("pending", "running")]
            if not [key for key in under_way if key not in outcome.failed and key not in outcome.blocked]:
                break
            time.sleep(self.poll_seconds)
        # The reason for not resubmitting a stage is more useful than its earlier failure.
        failed = {**_failures(states), **outcome.failed}
        return replace(
            outcome,
            executed=tuple(key for key in members if key in done),
            submitted={},
            failed=failed,
            blocked={
                # Slurm may report a dependency as never satisfied before any failure is recorded.
                key: next((other.key for other in lineage((stages[key],)) if other.key in failed), key)
                for key, state in states.items()
                if state.what == "blocked"
            }
            | dict(outcome.blocked),
        )

    def _emit(
        self, what: EventState, stage: Stage, plan: Plan, done: int, *, message: str = "", seconds: float = 0
    ) -> None:
        total = len(plan.stages)
        self.on_event(Event(what=what, stage=stage, done=done, total=total, seconds=seconds, message=message))


@dataclass(frozen=True)
class DeferredSubmission:
    """A job that submits the rest of a plan later, because of the limit on queued jobs.

    Holds keys only; stages are rebuilt from their specs. It can be requeued at any time, as the jobs that it has
    submitted are in the job log.
    """

    executor: SlurmExecutor
    root: Path
    allow: tuple[str, ...]
    leaves: tuple[str, ...]

    def __call__(self) -> None:
        """Submit, unless the sweep was cancelled; retry for some minutes if Slurm does not respond.

        Raises:
            JobFailed: the code has changed since the sweep was submitted.
            SchedulerError: every attempt failed.
        """
        store = Store(self.root, allow=self.allow)
        if JobLog(self.root).cancelled(self.executor.sweep):
            return
        drifted = source_digest(self.allow) != self.executor.code and not self.executor.site.allow_drift
        plan = Plan.of(store.stage(key) for key in self.leaves)
        if drifted:
            self._record_drift(plan, store)
            raise JobFailed(DRIFTED)
        retrying = Retrying(
            retry=retry_if_exception_type(SchedulerError),
            wait=wait_chain(*map(wait_fixed, RETRY_PAUSES_SECONDS)),
            stop=stop_after_attempt(1 + len(RETRY_PAUSES_SECONDS)),
            before_sleep=before_sleep_log(log, logging.WARNING),
            reraise=True,
        )
        retrying(self.executor.run, plan, store)

    def _record_drift(self, plan: Plan, store: Store) -> None:
        context = WorkerContext(store=store, claims=Claims(store.claims), tracker=self.executor.tracker, job=job_id())
        left = self.executor.only or frozenset()
        for stage in plan.pending(store):
            # Only the first of the remaining stages; their descendants are blocked.
            if stage.key in left and left.isdisjoint(other.key for other in lineage(stage.parents)):
                record(stage, context, Stopwatch(), {"outcome": "failed", "cause": DRIFT, "message": DRIFTED})


def _always() -> bool:
    return True


def _failures(states: Mapping[str, StageStatus]) -> dict[str, Failure]:
    return {
        key: Failure(kind=state.kind, cause=state.cause or state.what, message=state.message)
        for key, state in states.items()
        if state.what in ("failed", "held", "lost")
    }
