"""Snapshot of a plan before a submission: states of its stages, jobs in the queue, stages left to submit."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from harness.engine.plan import Plan
from harness.engine.stage import Stage
from harness.engine.store import Store
from harness.execution.state import Member, StageStatus
from harness.slurm.client import Queued, Scheduler, user
from harness.slurm.job_log import JobEntry
from harness.slurm.states import release_hint, states_of
from harness.slurm.worker import job_id

COMPLETING = "COMPLETING"
ENDING_SECONDS = 60.0
"""Maximum wait for jobs that are completing: by default, Slurm kills a cancelled job's processes after 30 s."""
_POLL_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state of a plan at one time.

    Attributes:
        jobs: the queued job of each stage, by key.
        todo: the stages that are neither stored nor in the queue, parents before children.
        states: states of the stages that were not stored, by key.
        queue: pending and running jobs of all users who submitted to the store.
    """

    jobs: Mapping[str, JobEntry]
    todo: Sequence[Stage]
    states: Mapping[str, StageStatus]
    queue: Mapping[str, Queued]

    def slot_freeing_jobs(self, before: Mapping[str, JobEntry]) -> list[str]:
        """Return this user's jobs and arrays whose end will free queue slots, oldest first; without held ones.

        Args:
            before: the latest job of each stage.
        """
        own_jobs = {entry.job for entry in before.values() if entry.user == user()} - {job_id()}
        queued = {job: self.queue[job] for job in own_jobs if job in self.queue}
        # A job of another sweep with this reason may wait for a held job.
        doubtful_reasons = {"Dependency"} if any(one.held for one in queued.values()) else set()
        ending = [
            job
            for job, one in queued.items()
            if one.alive and not one.held and job not in self.held_jobs and one.reason not in doubtful_reasons
        ]
        # A dependency on an array waits for all its elements.
        held = {base_id(job) for job, one in queued.items() if one.held}
        return sorted({base_id(job) for job in ending} - held, key=int)

    @property
    def held_jobs(self) -> set[str]:
        """Jobs with stages of the plan that are held or depend on a held job."""
        return {entry.job for key, entry in self.jobs.items() if self.states[key].what == "held"}


def take_snapshot(
    plan: Plan,
    store: Store,
    scheduler: Scheduler,
    before: Mapping[str, JobEntry],
    waiting: Callable[[Stage, str], None],
) -> Snapshot:
    """Take a snapshot of a plan, after waiting up to ``ENDING_SECONDS`` for completing jobs to end or be requeued.

    Args:
        plan: the plan.
        store: the store.
        scheduler: Slurm, or a dry run.
        before: the latest job of each stage.
        waiting: called at most once with a stage whose job is completing, and at most once with one whose job is held,
            with a message.

    Raises:
        SchedulerError: Slurm does not respond.
    """
    pending = plan.pending(store)
    members = {stage.key: Member(stage.name, [parent.key for parent in stage.parents]) for stage in pending}
    users = {entry.user for entry in before.values()} | {user()}
    deadline = time.monotonic() + ENDING_SECONDS
    reported = False
    while True:
        queue = scheduler.queue(users)
        states = states_of(members, store, scheduler, leaves=members, patient=True)
        # A stage may have failed or be blocked while its job still runs other stages.
        jobs = {
            key: before[key]
            for key, state in states.items()
            if key in before
            and (queued := queue.get(before[key].job))
            and queued.alive
            and state.what in ("running", "pending", "held")
        }
        ending = {entry.job for entry in jobs.values() if queue[entry.job].state == COMPLETING}
        if not ending or time.monotonic() >= deadline:
            break
        if not reported:
            reported = True
            stage = next(stage for stage in pending if stage.key in jobs and jobs[stage.key].job in ending)
            waiting(stage, f"job {jobs[stage.key].job} is completing; waiting up to {ENDING_SECONDS:.0f} s for it")
        time.sleep(_POLL_SECONDS)
    if held := [key for key in jobs if states[key].held_by]:
        by = sorted({states[key].held_by for key in held})
        stage = next(stage for stage in pending if stage.key in held)
        waiting(stage, f"{states[stage.key].message.partition(';')[0]}; {release_hint(by)}")
    return Snapshot(
        jobs={key: entry for key, entry in jobs.items() if entry.job not in ending},
        # Some stages may have been stored since the plan was checked.
        todo=[
            stage
            for stage in pending
            if states[stage.key].what != "stored" and (stage.key not in jobs or jobs[stage.key].job in ending)
        ],
        states=states,
        queue=queue,
    )


def base_id(job: str) -> str:
    """Return the id of a job without its array index."""
    return job.partition("_")[0]
