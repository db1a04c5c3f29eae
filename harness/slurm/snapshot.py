"""A survey: how things stand before anything is submitted: what is in the queue, and what is left to do."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from harness.engine.plan import Plan
from harness.engine.stage import Stage
from harness.engine.store import Store
from harness.execution.state import Member, StageStatus
from harness.slurm.client import Queued, Scheduler, user
from harness.slurm.job_log import JobEntry
from harness.slurm.states import freeing, states_of
from harness.slurm.worker import job_id

ENDING = "COMPLETING"
ENDING_SECONDS = 60.0
"""How long to wait for jobs that are ending: Slurm gives the processes of a cancelled one 30 s, by default."""
LOOK_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Survey:
    """How things stand.

    Attributes:
        jobs: the job in the queue that has each stage, by key.
        todo: the stages that are neither stored nor in the queue, parents before children.
        states: what became of the stages that were not stored, by key.
        queue: the jobs that have not ended, of everybody who submitted to the store.
    """

    jobs: Mapping[str, JobEntry]
    todo: Sequence[Stage]
    states: Mapping[str, StageStatus]
    queue: Mapping[str, Queued]

    def moving(self, before: Mapping[str, JobEntry]) -> list[str]:
        """Return the arrays and jobs of this user whose end makes room in the queue, oldest first; none that is held.

        Args:
            before: the last job that was given each stage.
        """
        mine = {entry.job for entry in before.values() if entry.user == user()} - {job_id()}
        queued = {job: self.queue[job] for job in mine if job in self.queue}
        # Of what another sweep's jobs wait for is known that they wait: perhaps for one that is held.
        doubtful = {"Dependency"} if any(one.held for one in queued.values()) else set()
        moving = [
            job
            for job, one in queued.items()
            if one.alive and not one.held and job not in self.stuck and one.reason not in doubtful
        ]
        # A job after an array waits for all its elements.
        stuck = {number_of(job) for job, one in queued.items() if one.held}
        return sorted({number_of(job) for job in moving} - stuck, key=int)

    @property
    def stuck(self) -> set[str]:
        """The jobs that have stages of the plan and are held, or wait for one that is."""
        return {entry.job for key, entry in self.jobs.items() if self.states[key].what == "held"}


def survey(
    plan: Plan,
    store: Store,
    scheduler: Scheduler,
    before: Mapping[str, JobEntry],
    waiting: Callable[[Stage, str], None],
) -> Survey:
    """Find out how a plan stands; waits, for a while, until jobs that are ending have ended or are queued again.

    Args:
        plan: what is asked for.
        store: where everything lies.
        scheduler: Slurm, or a rehearsal.
        before: the last job that was given each stage.
        waiting: is told, once each, of a stage whose job is ending, and why that is waited for; and of one whose job
            is held.

    Raises:
        SchedulerError: Slurm does not answer.
    """
    pending = plan.pending(store)
    members = {stage.key: Member(stage.name, [parent.key for parent in stage.parents]) for stage in pending}
    users = {entry.user for entry in before.values()} | {user()}
    deadline = time.monotonic() + ENDING_SECONDS
    told = False
    while True:
        queue = scheduler.queue(users)
        states = states_of(members, store, scheduler, leaves=members, patient=True)
        # A stage that failed, or is blocked, may belong to a job that goes on with others.
        jobs = {
            key: before[key]
            for key, state in states.items()
            if key in before
            and (queued := queue.get(before[key].job))
            and queued.alive
            and state.what in ("running", "pending", "held")
        }
        ending = {entry.job for entry in jobs.values() if queue[entry.job].state == ENDING}
        if not ending or time.monotonic() >= deadline:
            break
        if not told:
            told = True
            stage = next(stage for stage in pending if stage.key in jobs and jobs[stage.key].job in ending)
            waiting(stage, f"job {jobs[stage.key].job} is ending; looking again for up to {ENDING_SECONDS:.0f} s")
        time.sleep(LOOK_SECONDS)
    if held := [key for key in jobs if states[key].held_by]:
        by = sorted({states[key].held_by for key in held})
        stage = next(stage for stage in pending if stage.key in held)
        waiting(stage, f"{states[stage.key].message.partition(';')[0]}; {freeing(by)}")
    return Survey(
        jobs={key: entry for key, entry in jobs.items() if entry.job not in ending},
        # What was stored since the plan was looked at is no longer to be done.
        todo=[
            stage
            for stage in pending
            if states[stage.key].what != "stored" and (stage.key not in jobs or jobs[stage.key].job in ending)
        ],
        states=states,
        queue=queue,
    )


def number_of(job: str) -> str:
    """Return the number of a job; that of its array, if it is an element."""
    return job.partition("_")[0]
