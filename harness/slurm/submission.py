"""One submission: submits the pending stages of a plan as job arrays, parents before children."""

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.engine.plan import Plan
from harness.engine.stage import Stage, lineage
from harness.engine.store import Store
from harness.engine.tracker import TrackerSettings
from harness.errors import Interrupted, SchedulerError
from harness.execution.executor import Failure
from harness.execution.state import StageStatus
from harness.slurm.client import Queued, Request, Scheduler, user
from harness.slurm.interrupt import deferred_signals
from harness.slurm.job_log import JobEntry, JobLog
from harness.slurm.packing import JobArray, arrange_jobs
from harness.slurm.retry_policy import RetryDecision, retry_decision
from harness.slurm.snapshot import Snapshot, base_id, take_snapshot
from harness.slurm.worker import Job, job_id

if TYPE_CHECKING:
    from harness.slurm.settings import Slurm

log = logging.getLogger(__name__)
REFUSED = "same error"
RETRY_BEGIN = "now+300"
"""Earliest start of a deferred submission if no job of this user is going to free a queue slot."""
DEFERRED_SIGNAL_SECONDS = 30


class Superseded(Exception):
    """Another process took over the submission lock while this one was suspended."""


@dataclass(kw_only=True)
class Submission:
    """One submission in progress.

    Attributes:
        site: the cluster's settings.
        scheduler: Slurm, or a dry run.
        sweep: the sweep's id.
        tracker: opens the curve of each stage.
        deferred_job: creates the job that submits these keys later, if the queue's job limit is reached.
        prepare: called once in every process that runs stages, before its first stage, with the number of CPU threads.
        waiting: called with a stage and a message if its job must end before the submission can go on, or is held.
        held: returns whether this process still holds the submission lock.
        code: digest of the code that the jobs must run.
        only: keys to submit, for a deferred submission; None submits all pending stages. Other stages that failed
            meanwhile are left to a retry.
        plan: the requested plan.
        store: the store.
        jobs: the job of each stage, by key, including jobs that were already queued.
        refused: why a stage was not submitted, by key.
        blocked: the refused ancestor, by key of the stage.
        found: number of stages that were already queued.
        calls: number of calls of sbatch.
        left: number of stages left to a deferred submission.
        folder: folder of this submission's scripts and logs.
    """

    site: "Slurm"
    scheduler: Scheduler
    sweep: str
    tracker: TrackerSettings
    deferred_job: Callable[[frozenset[str]], Callable[[], None]]
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
        """Submit the stages that are neither stored nor queued.

        Raises:
            SchedulerError: Slurm rejected a job or does not respond; jobs submitted before stay submitted.
            Interrupted: the sweep was cancelled meanwhile.
            Superseded: another process took over the submission lock; jobs submitted before are in the job log.
        """
        job_log = JobLog(self.store.root)
        self.folder = job_log.open(self.sweep, dry_run=self.scheduler.dry_run)
        before = job_log.latest()
        snapshot = take_snapshot(self.plan, self.store, self.scheduler, before, self.waiting)
        self._cancel_orphans(job_log, snapshot.queue)
        self.jobs = dict(snapshot.jobs)
        self.found = len(self.jobs)
        todo = snapshot.todo
        if self.only is not None:
            not_ours = {stage.key for stage in todo if stage.key not in self.only}
            todo = [stage for stage in todo if not_ours.isdisjoint(other.key for other in lineage((stage,)))]
        self._cancel_deferred(job_log, snapshot.queue)
        decisions = self._decide_retries(todo, snapshot.states, before)
        todo = [stage for stage in todo if stage.key not in self.refused and stage.key not in self.blocked]
        arrays = arrange_jobs(
            todo,
            queued=self.jobs.keys(),
            fuse=_kinds(self.site.joins, todo, lambda stage: stage.fuses),
            fuse_siblings=_kinds(self.site.fans, todo, lambda stage: stage.fuses_siblings),
            chains_per_job=self.site.pack,
            limit=self.site.array_limit,
        )
        if arrays:
            self._submit_all(arrays, decisions, snapshot, snapshot.slot_freeing_jobs(before), job_log)

    def _submit_all(
        self,
        arrays: Sequence[JobArray],
        decisions: Mapping[str, RetryDecision],
        snapshot: Snapshot,
        slot_freeing: Sequence[str],
        job_log: JobLog,
    ) -> None:
        # The limit applies per user.
        free = None
        # A dry run writes all scripts, as it queues nothing.
        if self.site.job_cap is not None and not self.scheduler.dry_run:
            free = self.site.job_cap - len(self.scheduler.queue({user()}))
        submitted: list[str] = []
        held_jobs = set(snapshot.held_jobs)
        for index, array in enumerate(arrays):
            if job_log.cancelled(self.sweep) and not self.scheduler.dry_run:
                raise Interrupted(f"The sweep was cancelled after {self.calls} calls of sbatch.")
            last = index == len(arrays) - 1
            count = len(array.jobs)
            if free is not None and count > free - (0 if last else 1):
                # One slot is reserved for the deferred submission.
                count = max(free - 1, 0)
            if count:
                waits_for = {self.jobs[key].job for key in array.needs}
                entries = self._submit(replace(array, jobs=array.jobs[:count]), decisions, job_log)
                if held_jobs.isdisjoint(waits_for):
                    submitted.append(base_id(entries[0].job))
                else:
                    held_jobs.update(entry.job for entry in entries)
            if count < len(array.jobs):
                rest = replace(array, jobs=array.jobs[count:])
                self._defer([rest, *arrays[index + 1 :]], submitted or slot_freeing, job_log)
                return
            free = None if free is None else free - count

    def _submit(self, array: JobArray, decisions: Mapping[str, RetryDecision], job_log: JobLog) -> list[JobEntry]:
        kinds = [[stage.name for stage in chain] for chains in array.jobs for chain in chains]
        shrink = {stage.key: decisions[stage.key].shrink for stage in array.stages if decisions[stage.key].shrink > 1}
        exclude = sorted({node for stage in array.stages for node in decisions[stage.key].exclude})
        parameters = self.site.parameters(kinds, len(array.jobs[0]))
        if exclude:
            # Options of `cluster.sbatch` replace others of the same name.
            own = parameters.get("additional_parameters", {})
            place = own if "exclude" in own else parameters
            place["exclude"] = ",".join([*filter(None, [own.get("exclude")]), *exclude])
        after_ok, after_any = self._dependencies(array)
        request = Request(
            name=f"{array.kind} {self.sweep}",
            folder=self.folder,
            jobs=[
                Job(
                    root=self.store.root,
                    allow=self.store.allow,
                    lines=tuple(tuple(stage.key for stage in chain) for chain in chains),
                    tracker=self.tracker,
                    prepare=partial(self.prepare, self.site.cpus(kinds)),
                    device=self.site.device(kinds),
                    processes=self.site.processes,
                    code=self.code,
                    allow_drift=self.site.allow_drift,
                    umask=_umask(),
                    requeues=self.site.requeues,
                    grace_seconds=self.site.grace_seconds,
                    shrink=shrink,
                )
                for chains in array.jobs
            ],
            after_ok=after_ok,
            after_any=after_any,
            parameters=parameters,
            requeues=self.site.requeues,
            python=self.site.python,
        )
        entries = self._call_sbatch(
            request,
            job_log,
            [
                JobEntry(
                    job="",
                    keys=tuple(stage.key for chain in chains for stage in chain),
                    user=user(),
                    folder=os.path.relpath(self.folder, self.store.root),
                    shrink={stage.key: shrink[stage.key] for chain in chains for stage in chain if stage.key in shrink},
                    excluded=tuple(exclude),
                    tried={
                        stage.key: decisions[stage.key].tried
                        for chain in chains
                        for stage in chain
                        if decisions[stage.key].tried
                    },
                )
                for chains in array.jobs
            ],
        )
        self.jobs |= {key: entry for entry in entries for key in entry.keys}
        return entries

    def _call_sbatch(self, request: Request, job_log: JobLog, entries: Sequence[JobEntry]) -> list[JobEntry]:
        """Call sbatch once and log the job ids; signals other than SIGTERM and SIGKILL are deferred in between."""
        if not self.held():
            raise Superseded
        with deferred_signals():
            ids = self.scheduler.submit(request)
            self.calls += 1
            logged = [replace(entry, job=job) for job, entry in zip(ids, entries, strict=True)]
            if not self.held():
                # Suspended during the call: the new holder of the lock does not know these jobs.
                with suppress(SchedulerError):
                    self.scheduler.cancel(ids)
                raise Superseded
            if not self.scheduler.dry_run:
                job_log.write(self.folder, logged)
        return logged

    def _dependencies(self, array: JobArray) -> tuple[list[str], list[str]]:
        """Return the ids of the jobs for ``afterok`` and for ``afterany``.

        A job may also run stages that are not needed, or that only some chains of the array need. Its failure then does
        not imply that the array cannot run, so ``afterany`` is used and each stage checks its own parents.
        """
        needed = {other.key for other in lineage(tuple(self._stages[key] for key in array.common))}
        jobs = {entry.job: needed.issuperset(entry.keys) for entry in (self.jobs[key] for key in array.needs)}
        return sorted(job for job, all_needed in jobs.items() if all_needed), sorted(
            job for job, all_needed in jobs.items() if not all_needed
        )

    def _defer(self, arrays: Sequence[JobArray], submitted: Sequence[str], job_log: JobLog) -> None:
        """Leave the rest to a job that starts when half of these jobs have ended, and submits it."""
        keys = frozenset(stage.key for array in arrays for stage in array.stages)
        parameters = self.site.parameters([[]], 1)
        if not submitted:
            # All queue slots are taken by jobs of other programs.
            parameters["additional_parameters"] = {**parameters.get("additional_parameters", {}), "begin": RETRY_BEGIN}
        request = Request(
            name=f"submit {self.sweep}",
            folder=self.folder,
            jobs=[self.deferred_job(keys)],
            after_any=submitted[: (len(submitted) + 1) // 2],
            # The job is short and has no state to save.
            parameters={**parameters, "signal_delay_s": DEFERRED_SIGNAL_SECONDS},
            requeues=self.site.requeues,
            python=self.site.python,
        )
        if not self.scheduler.dry_run:
            job_log.write_deferred(self.folder, keys)
        folder = os.path.relpath(self.folder, self.store.root)
        self._call_sbatch(request, job_log, [JobEntry(job="", keys=(), user=user(), folder=folder)])
        self.left = len(keys)

    def _cancel_orphans(self, job_log: JobLog, queue: Mapping[str, Queued]) -> None:
        """Cancel orphaned jobs of the sweep: submitted, but missing in the job log."""
        orphans = [job for job, orphan in job_log.orphans(queue, self.sweep).items() if not orphan.running]
        if self.scheduler.dry_run or not orphans:
            return
        try:
            self.scheduler.cancel(orphans)
        except SchedulerError as error:
            log.warning("jobs of an interrupted submission could not be cancelled: %s", error)

    def _cancel_deferred(self, job_log: JobLog, queue: Mapping[str, Queued]) -> None:
        """Cancel earlier deferred submissions of the sweep: this one covers all their stages."""
        deferred = [entry.job for entry in job_log.entries(self.sweep) if not entry.keys and entry.job in queue]
        if self.scheduler.dry_run or not (waiting := [job for job in deferred if job != job_id()]):
            return
        try:
            self.scheduler.cancel(waiting)
        except SchedulerError as error:
            # They may be another user's, or have just ended. One that still runs finds everything queued.
            log.warning("deferred submissions of the sweep could not be cancelled: %s", error)

    def _decide_retries(
        self, todo: Sequence[Stage], states: Mapping[str, StageStatus], before: Mapping[str, JobEntry]
    ) -> dict[str, RetryDecision]:
        """Return how to submit each stage, given its earlier attempts; record stages that must not be resubmitted."""
        decisions = {
            stage.key: retry_decision(
                states[stage.key], stage.key, self.store, before.get(stage.key), on_oom=self.site.on_oom
            )
            for stage in todo
        }
        for stage in todo:
            if decisions[stage.key].refuse:
                message = decisions[stage.key].refuse
                self.refused[stage.key] = Failure(kind=stage.name, cause=REFUSED, message=message)
            elif refused_ancestors := [other.key for other in lineage(stage.parents) if other.key in self.refused]:
                self.blocked[stage.key] = refused_ancestors[0]
        return decisions


def _umask() -> int:
    # The umask can only be read by setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _kinds(named: Collection[str] | None, stages: Sequence[Stage], trait: Callable[[Stage], bool]) -> Collection[str]:
    """Return the kinds that the site lists; by default, those whose stages have a trait."""
    return named if named is not None else {stage.name for stage in stages if trait(stage)}
