"""One submission: the pending stages of a plan become calls of sbatch, parents before children."""

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from harness.engine.plan import Plan
from harness.engine.stage import Stage, lineage
from harness.engine.store import Store
from harness.engine.tracker import TrackerSettings
from harness.errors import Interrupted, SchedulerError
from harness.execution.executor import Failure
from harness.execution.state import State
from harness.slurm.client import Queued, Request, Scheduler, user
from harness.slurm.interrupt import undisturbed
from harness.slurm.job_log import JobEntry, JobLog
from harness.slurm.packing import Batch, batches_of
from harness.slurm.retry_policy import RetryDecision, retry_decision
from harness.slurm.site import Site
from harness.slurm.snapshot import Survey, number_of, survey
from harness.slurm.worker import Job, job_id

log = logging.getLogger(__name__)
REFUSED = "same error"
LATER = "now+300"
"""When a continuation looks again if no job of the harness's has a place that could become free."""
WARNING_SECONDS = 30


class Superseded(Exception):
    """Somebody else took the turn of a submission that had slept for too long."""


@dataclass(kw_only=True)
class Submission:
    """One submission under way.

    Attributes:
        site: the cluster.
        scheduler: Slurm, or a rehearsal.
        sweep: the sweep's id.
        tracker: opens the curve of each stage.
        continuation: makes a job that submits these keys, when the cap on jobs leaves something.
        prepare: called with the number of CPU threads in every process that runs stages, before the first.
        waiting: is told of a stage whose job has to end before it can be said what is left to do, or is held.
        held: says whether the claim that makes submissions take turns is still this one's.
        code: digest of the code that the jobs have to run.
        only: the keys that this submission is for; None is all that a plan needs. What failed since they were left is
            left to a retry.
        plan: what is asked for.
        store: where everything lies.
        jobs: the job that was given each stage, by key; those that were in the queue before included.
        refused: why a stage was not submitted, by key.
        blocked: the refused stage that is in the way, by key.
        found: how many stages were in the queue already.
        calls: how often sbatch was called.
        left: how many stages were left to the continuation.
        folder: where the scripts and logs of this submission lie.
    """

    site: Site
    scheduler: Scheduler
    sweep: str
    tracker: TrackerSettings
    continuation: Callable[[frozenset[str]], Callable[[], None]]
    prepare: Callable[[int | None], None]
    waiting: Callable[[Stage, str], None]
    held: Callable[[], bool]
    code: str
    only: frozenset[str] | None
    plan: Plan
    store: Store
    jobs: dict[str, JobEntry] = field(default_factory=dict)
    refused: dict[str, Failure] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)
    found: int = 0
    calls: int = 0
    left: int = 0
    folder: Path = field(init=False)

    @cached_property
    def _stages(self) -> dict[str, Stage]:
        return {stage.key: stage for stage in self.plan.stages}

    def run(self) -> None:
        """Submit what is neither stored nor in the queue.

        Raises:
            SchedulerError: Slurm refused or does not answer; what was submitted before stays submitted.
            Interrupted: the sweep was cancelled meanwhile.
            Superseded: somebody else took the turn, as this process slept; what was submitted before is known.
        """
        ledger = JobLog(self.store.root)
        self.folder = ledger.open(self.sweep, dry_run=self.scheduler.dry_run)
        before = ledger.latest()
        found = survey(self.plan, self.store, self.scheduler, before, self.waiting)
        self._end_strays(ledger, found.queue)
        self.jobs = dict(found.jobs)
        self.found = len(self.jobs)
        todo = found.todo
        if self.only is not None:
            lost = {stage.key for stage in todo if stage.key not in self.only}
            todo = [stage for stage in todo if lost.isdisjoint(other.key for other in lineage((stage,)))]
        self._take_over(ledger, found.queue)
        advice = self._advice(todo, found.states, before)
        todo = [stage for stage in todo if stage.key not in self.refused and stage.key not in self.blocked]
        batches = batches_of(
            todo,
            elsewhere=self.jobs.keys(),
            joins=_kinds(self.site.joins, todo, lambda stage: stage.fuses),
            fans=_kinds(self.site.fans, todo, lambda stage: stage.fuses_siblings),
            pack=self.site.pack,
            limit=self.site.array_limit,
        )
        if batches:
            self._submit_all(batches, advice, found, found.moving(before), ledger)

    def _submit_all(
        self,
        batches: Sequence[Batch],
        advice: Mapping[str, RetryDecision],
        found: Survey,
        others: Sequence[str],
        ledger: JobLog,
    ) -> None:
        # The site counts the jobs of each user.
        room = None
        # A rehearsal writes all scripts, as it puts nothing into the queue.
        if self.site.job_cap is not None and not self.scheduler.dry_run:
            room = self.site.job_cap - len(self.scheduler.queue({user()}))
        numbers: list[str] = []
        stuck = set(found.stuck)
        for place, batch in enumerate(batches):
            if ledger.cancelled(self.sweep) and not self.scheduler.dry_run:
                raise Interrupted(f"The sweep was cancelled after {self.calls} calls of sbatch.")
            last = place == len(batches) - 1
            fits = len(batch.tasks)
            if room is not None and fits > room - (0 if last else 1):
                # A place is kept for the job that submits the rest.
                fits = max(room - 1, 0)
            if fits:
                waits_for = {self.jobs[key].job for key in batch.needs}
                entries = self._submit(replace(batch, tasks=batch.tasks[:fits]), advice, ledger)
                if stuck.isdisjoint(waits_for):
                    numbers.append(number_of(entries[0].job))
                else:
                    stuck.update(entry.job for entry in entries)
            if fits < len(batch.tasks):
                rest = replace(batch, tasks=batch.tasks[fits:])
                self._leave([rest, *batches[place + 1 :]], numbers or others, ledger)
                return
            room = None if room is None else room - fits

    def _submit(self, batch: Batch, advice: Mapping[str, RetryDecision], ledger: JobLog) -> list[JobEntry]:
        lines = [[stage.name for stage in line] for task in batch.tasks for line in task]
        shrink = {stage.key: advice[stage.key].shrink for stage in batch.stages if advice[stage.key].shrink > 1}
        exclude = sorted({node for stage in batch.stages for node in advice[stage.key].exclude})
        parameters = self.site.parameters(lines, len(batch.tasks[0]))
        if exclude:
            parameters["exclude"] = ",".join(exclude)
        after_ok, after_any = self._edges(batch)
        request = Request(
            name=f"{batch.kind} {self.sweep}",
            folder=self.folder,
            jobs=[
                Job(
                    root=self.store.root,
                    allow=self.store.allow,
                    lines=tuple(tuple(stage.key for stage in line) for line in task),
                    tracker=self.tracker,
                    prepare=partial(self.prepare, self.site.cpus(lines)),
                    device=self.site.device(lines),
                    processes=self.site.processes,
                    code=self.code,
                    allow_drift=self.site.allow_drift,
                    umask=_umask(),
                    requeues=self.site.requeues,
                    grace_seconds=self.site.grace_seconds,
                    shrink=shrink,
                )
                for task in batch.tasks
            ],
            after_ok=after_ok,
            after_any=after_any,
            parameters=parameters,
            requeues=self.site.requeues,
            python=self.site.python,
        )
        entries = self._called(
            request,
            ledger,
            [
                JobEntry(
                    job="",
                    keys=tuple(stage.key for line in task for stage in line),
                    user=user(),
                    folder=os.path.relpath(self.folder, self.store.root),
                    shrink={stage.key: shrink[stage.key] for line in task for stage in line if stage.key in shrink},
                    excluded=tuple(exclude),
                    tried={
                        stage.key: advice[stage.key].tried for line in task for stage in line if advice[stage.key].tried
                    },
                )
                for task in batch.tasks
            ],
        )
        self.jobs |= {key: entry for entry in entries for key in entry.keys}
        return entries

    def _called(self, request: Request, ledger: JobLog, entries: Sequence[JobEntry]) -> list[JobEntry]:
        """Call sbatch once and note what it answers; nothing but the end of this process comes between the two."""
        if not self.held():
            raise Superseded
        with undisturbed():
            ids = self.scheduler.submit(request)
            self.calls += 1
            named = [replace(entry, job=job) for job, entry in zip(ids, entries, strict=True)]
            if not self.held():
                # It slept during the call. Whoever took the turn has not seen these jobs.
                with suppress(SchedulerError):
                    self.scheduler.cancel(ids)
                raise Superseded
            if not self.scheduler.dry_run:
                ledger.write(self.folder, named)
        return named

    def _edges(self, batch: Batch) -> tuple[list[str], list[str]]:
        """Return the jobs that have to succeed, and those that have to end.

        A job may also run what is not needed, or what only some lines of the batch need. Its failure then says nothing
        of the others, and each child looks at its own parents.
        """
        needed = {other.key for other in lineage(tuple(self._stages[key] for key in batch.common))}
        jobs = {entry.job: needed.issuperset(entry.keys) for entry in (self.jobs[key] for key in batch.needs)}
        return sorted(job for job, all_needed in jobs.items() if all_needed), sorted(
            job for job, all_needed in jobs.items() if not all_needed
        )

    def _leave(self, batches: Sequence[Batch], numbers: Sequence[str], ledger: JobLog) -> None:
        """Leave the rest to a job that starts when half of these jobs have ended."""
        keys = frozenset(stage.key for batch in batches for stage in batch.stages)
        parameters = self.site.parameters([[]], 1)
        if not numbers:
            # The places in the queue are taken by what is none of the harness's.
            parameters["additional_parameters"] = {**parameters.get("additional_parameters", {}), "begin": LATER}
        request = Request(
            name=f"submit {self.sweep}",
            folder=self.folder,
            jobs=[self.continuation(keys)],
            after_any=numbers[: (len(numbers) + 1) // 2],
            # It is short, and keeps nothing that it would have to save.
            parameters={**parameters, "signal_delay_s": WARNING_SECONDS},
            requeues=self.site.requeues,
            python=self.site.python,
        )
        if not self.scheduler.dry_run:
            ledger.leave(self.folder, keys)
        folder = os.path.relpath(self.folder, self.store.root)
        self._called(request, ledger, [JobEntry(job="", keys=(), user=user(), folder=folder)])
        self.left = len(keys)

    def _end_strays(self, ledger: JobLog, queue: Mapping[str, Queued]) -> None:
        """End jobs of the sweep that a submission made which never learned of them, before they take any place."""
        strays = [job for job, stray in ledger.strays(queue, self.sweep).items() if not stray.works]
        if self.scheduler.dry_run or not strays:
            return
        try:
            self.scheduler.cancel(strays)
        except SchedulerError as error:
            log.warning("jobs of an interrupted submission may go on: %s", error)

    def _take_over(self, ledger: JobLog, queue: Mapping[str, Queued]) -> None:
        """End the continuations of earlier submissions of the sweep: this one is for all that they would submit."""
        mine = [entry.job for entry in ledger.entries(self.sweep) if not entry.keys and entry.job in queue]
        if self.scheduler.dry_run or not (waiting := [job for job in mine if job != job_id()]):
            return
        try:
            self.scheduler.cancel(waiting)
        except SchedulerError as error:
            # Another user's, or just ended. One that goes on finds everything in the queue.
            log.warning("jobs that would submit the rest of the sweep may go on: %s", error)

    def _advice(
        self, todo: Sequence[Stage], states: Mapping[str, State], before: Mapping[str, JobEntry]
    ) -> dict[str, RetryDecision]:
        """Find out how to submit stages that were tried before; note those that should not be."""
        advice = {
            stage.key: retry_decision(
                states[stage.key], stage.key, self.store, before.get(stage.key), on_oom=self.site.on_oom
            )
            for stage in todo
        }
        for stage in todo:
            if advice[stage.key].refuse:
                message = advice[stage.key].refuse
                self.refused[stage.key] = Failure(kind=stage.name, cause=REFUSED, message=message)
            elif bad := [other.key for other in lineage(stage.parents) if other.key in self.refused]:
                self.blocked[stage.key] = bad[0]
        return advice


def _umask() -> int:
    # It can only be read by setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _kinds(named: Collection[str] | None, stages: Sequence[Stage], trait: Callable[[Stage], bool]) -> Collection[str]:
    """Return the kinds that the site names, or else those whose stages have a trait."""
    return named if named is not None else {stage.name for stage in stages if trait(stage)}
