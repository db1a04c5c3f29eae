"""The Slurm executor: submits the pending part of a plan as a graph of jobs, which the scheduler holds, and returns.

Nothing has to stay alive: edges are the scheduler's, stages are frozen in the store, and success is a manifest. What is
submitted is written to the ledger, so that whoever comes next, with another sweep or as another person, depends on the
jobs that are already there.
"""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

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
from harness.execution.executor import Event, Failure, Outcome, What, unheard
from harness.execution.state import Member, State
from harness.slurm.client import Scheduler
from harness.slurm.job_log import JobLog
from harness.slurm.site import Site
from harness.slurm.states import states_of
from harness.slurm.submission import Submission, Superseded
from harness.slurm.turn import submitting
from harness.slurm.worker import DRIFT, DRIFTED, JobFailed, job_id

log = logging.getLogger(__name__)
PAUSES_SECONDS = (5.0, 10.0, 20.0, 40.0, 80.0)
"""Between the attempts of a continuation whose Slurm does not answer; all of them fit into its time limit."""


@dataclass(frozen=True, kw_only=True)
class SlurmExecutor:
    """Submits a plan to Slurm.

    Attributes:
        site: the cluster.
        scheduler: Slurm, or a rehearsal of it.
        sweep: the sweep's id.
        tracker: opens the curve of each stage.
        prepare: called with the number of CPU threads in every process that runs stages, before the first; picklable.
        on_event: called for everything that happens to a stage.
        wait: stay until nothing is left to run.
        poll_seconds: how often a waiting executor looks.
        only: the keys that a continuation submits; None for everybody else.
        code: digest of the code that the jobs have to run; empty for that which is here.
    """

    site: Site
    scheduler: Scheduler
    sweep: str
    tracker: TrackerSettings
    prepare: Callable[[int | None], None]
    on_event: Callable[[Event], None] = unheard
    wait: bool = False
    poll_seconds: float = 5.0
    only: frozenset[str] | None = None
    code: str = ""

    def run(self, plan: Plan, store: Store) -> Outcome:
        """Submit the stages of a plan that are neither in the store nor in the queue.

        Raises:
            StoreError: the store cannot be written, or Slurm cannot be given its path.
            SchedulerError: Slurm refused or does not answer; what was submitted before stays submitted.
            Interrupted: the sweep was cancelled, or the user pressed Ctrl-C; what was submitted stays submitted.
        """
        pending = plan.pending(store)
        cached = tuple(stage.key for stage in plan.stages if store.has(stage))
        if not pending:
            return Outcome(cached=cached)
        if "%" in str(store.root):
            raise StoreError(
                f"The store `{store.root}` has a % in its path, which Slurm would replace; move the store."
            )
        dry_run = self.scheduler.dry_run
        if not dry_run:
            store.prepare()
            store.register(plan.stages)
        leaves = tuple(leaf.key for leaf in plan.leaves)
        code = self.code or source_digest(store.allow)

        def again(keys: frozenset[str]) -> DeferredSubmission:
            executor = replace(self, on_event=unheard, wait=False, only=keys, code=code)
            return DeferredSubmission(executor, store.root, store.allow, leaves)

        def waiting(stage: Stage, why: str) -> None:
            self._tell("waiting", stage, plan, len(cached), message=why)

        try:
            while True:
                # Who only rehearses puts nothing into the queue, and waits for nobody.
                with nullcontext() if dry_run else submitting(store, lambda why: waiting(pending[0], why)) as turn:
                    submission = Submission(
                        site=self.site,
                        scheduler=self.scheduler,
                        sweep=self.sweep,
                        tracker=self.tracker,
                        continuation=again,
                        prepare=self.prepare,
                        only=self.only,
                        waiting=waiting,
                        held=turn.held if turn else _always,
                        code=code,
                        plan=plan,
                        store=store,
                    )
                    try:
                        submission.run()
                        break
                    except Superseded:
                        waiting(pending[0], "somebody else submitted while this process slept; looking again")
            told = {key: entry.job for key, entry in submission.jobs.items()}
            for stage in pending:
                if stage.key in told:
                    self._tell("submitted", stage, plan, len(cached), message=told[stage.key])
            outcome = Outcome(
                cached=cached,
                submitted=told,
                found=submission.found,
                calls=submission.calls,
                left=submission.left,
                scripts=submission.folder if dry_run else None,
                failed=submission.refused,
                blocked=submission.blocked,
            )
            return self._waited(plan, store, outcome) if self.wait else outcome
        except KeyboardInterrupt:
            raise Interrupted(f"Stopped. What was submitted goes on; `harness cancel {self.sweep}` ends it.") from None

    def _waited(self, plan: Plan, store: Store, outcome: Outcome) -> Outcome:
        """Look until nothing of the plan is pending or running."""
        cached = set(outcome.cached)
        stages = {stage.key: stage for stage in plan.stages if stage.key not in cached}
        members = {key: Member(stage.name, [parent.key for parent in stage.parents]) for key, stage in stages.items()}
        leaves = {leaf.key for leaf in plan.leaves}
        done: set[str] = set()
        told: set[str] = set()
        while True:
            states = states_of(members, store, self.scheduler, sweep=self.sweep, leaves=leaves, patient=True)
            for key in [key for key, state in states.items() if state.what == "stored" and key not in done]:
                done.add(key)
                took = store.manifest(key).seconds
                self._tell("executed", stages[key], plan, len(cached) + len(done), seconds=took)
            for key in [key for key in _failures(states) if key not in told and key not in outcome.failed]:
                told.add(key)
                self._tell("failed", stages[key], plan, len(cached) + len(done), message=states[key].message)
            under_way = [key for key, state in states.items() if state.what in ("pending", "running")]
            if not [key for key in under_way if key not in outcome.failed and key not in outcome.blocked]:
                break
            time.sleep(self.poll_seconds)
        # Why a stage was refused says more than how it failed before.
        failed = {**_failures(states), **outcome.failed}
        return replace(
            outcome,
            executed=tuple(key for key in members if key in done),
            submitted={},
            failed=failed,
            blocked={
                # Slurm may know before anybody else that what a job waits for will never be.
                key: next((other.key for other in lineage((stages[key],)) if other.key in failed), key)
                for key, state in states.items()
                if state.what == "blocked"
            }
            | dict(outcome.blocked),
        )

    def _tell(self, what: What, stage: Stage, plan: Plan, done: int, *, message: str = "", seconds: float = 0) -> None:
        total = len(plan.stages)
        self.on_event(Event(what=what, stage=stage, done=done, total=total, seconds=seconds, message=message))


@dataclass(frozen=True)
class DeferredSubmission:
    """A job that submits what the cap on jobs left of a plan. It holds keys only: stages come from their specs.

    It may start again at any moment: what it has submitted by then is in the ledger.
    """

    executor: SlurmExecutor
    root: Path
    allow: tuple[str, ...]
    leaves: tuple[str, ...]

    def __call__(self) -> None:
        """Submit, unless the sweep was cancelled; a Slurm that does not answer is asked again for some minutes.

        Raises:
            JobFailed: the code is not that which submitted the sweep.
            SchedulerError: Slurm refused, or did not answer, each time.
        """
        store = Store(self.root, allow=self.allow)
        if JobLog(self.root).cancelled(self.executor.sweep):
            return
        drifted = source_digest(self.allow) != self.executor.code and not self.executor.site.allow_drift
        plan = Plan.of(store.stage(key) for key in self.leaves)
        if drifted:
            self._refuse(plan, store)
            raise JobFailed(DRIFTED)
        asking = Retrying(
            retry=retry_if_exception_type(SchedulerError),
            wait=wait_chain(*map(wait_fixed, PAUSES_SECONDS)),
            stop=stop_after_attempt(1 + len(PAUSES_SECONDS)),
            before_sleep=before_sleep_log(log, logging.WARNING),
            reraise=True,
        )
        asking(self.executor.run, plan, store)

    def _refuse(self, plan: Plan, store: Store) -> None:
        desk = WorkerContext(store=store, claims=Claims(store.claims), tracker=self.executor.tracker, job=job_id())
        left = self.executor.only or frozenset()
        for stage in plan.pending(store):
            # What needs another that is left is blocked by it.
            if stage.key in left and left.isdisjoint(other.key for other in lineage(stage.parents)):
                record(stage, desk, Stopwatch(), {"outcome": "failed", "cause": DRIFT, "message": DRIFTED})


def _always() -> bool:
    return True


def _failures(states: Mapping[str, State]) -> dict[str, Failure]:
    return {
        key: Failure(kind=state.kind, cause=state.cause or state.what, message=state.message)
        for key, state in states.items()
        if state.what in ("failed", "held", "lost")
    }
