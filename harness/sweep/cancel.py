"""Cancel a sweep: cancel its jobs, except those that another sweep needs."""

from collections.abc import Callable, Collection
from typing import NamedTuple

from harness.engine.build import TARGET
from harness.engine.classes import label_of
from harness.engine.gc import keys_of_record, record_problem, with_ancestors
from harness.engine.lookup import resolve_sweep
from harness.engine.store import Store
from harness.errors import SchedulerError, StoreError
from harness.local.settings import Local
from harness.slurm.client import Scheduler, SlurmClient, user
from harness.slurm.job_log import JobEntry, JobLog
from harness.slurm.lock import submission_lock_if_writable
from harness.sweep.status import ignore


class Cancelled(NamedTuple):
    """Result of cancelling a sweep.

    Attributes:
        sweep: its id.
        ended: ids of the jobs that were cancelled.
        spared: ids of its jobs that were left because another sweep needs them.
    """

    sweep: str
    ended: list[str]
    spared: list[str]


def cancel(
    root: Store, name: str | None, scheduler: Scheduler | None = None, notify: Callable[[str], None] = ignore
) -> Cancelled:
    """Cancel the jobs of a sweep that no other sweep needs. Works on a full disk.

    Args:
        root: the store.
        name: id of the sweep, or a prefix of it; None is the latest.
        scheduler: replaces Slurm in tests.
        notify: receives messages about waiting, and about files that could not be read or written.

    Raises:
        StoreError: there is no such sweep.
        SchedulerError: Slurm does not respond.
    """
    scheduler = scheduler or SlurmClient()
    sweep = resolve_sweep(root, name)
    job_log = JobLog(root.root)
    # The mark stops a submission in progress; the list of jobs is complete only after that.
    try:
        job_log.cancel(sweep)
    except StoreError as error:
        notify(
            f"{error} The jobs are cancelled, but the sweep is not marked as cancelled: "
            "run `harness cancel` again once the store can be written."
        )
    with submission_lock_if_writable(root, notify):
        try:
            queue = scheduler.queue({entry.user for entry in job_log.entries()} | {user()})
        except SchedulerError:
            if any(job_log.entries()) or job_log.damage or not _ran_here(sweep, root):
                raise
            # The store never had jobs: it does not matter that Slurm does not respond.
            return Cancelled(sweep, [], [])
        known = set(root.sweep_ids())
        others = [other for other in job_log.sweeps() if other != sweep and other in known]
        needed = set().union(*(_needed_by(other, root, job_log, notify) for other in others))
        inherited = _inherited_jobs(sweep, root, job_log, others)
        jobs = {entry.job: set(entry.keys) for entry in (*job_log.entries(sweep), *inherited) if entry.job in queue}
        jobs |= {job: set() for job in job_log.orphans(queue, sweep)}
        spared = {job for job, keys in jobs.items() if needed.intersection(keys)}
        scheduler.cancel(jobs.keys() - spared)
        for problem in job_log.damage:
            notify(problem)
    return Cancelled(sweep, sorted(jobs.keys() - spared), sorted(spared))


def _ran_here(sweep: str, root: Store) -> bool:
    """Return whether a sweep was last run on the machine on which it was started."""
    if record_problem(root, sweep):
        return False
    place = root.read_sweep(sweep).get("place", {}).get("cluster", {})
    return label_of(str(place.get(TARGET))) == Local.__name__


def _needed_by(sweep: str, root: Store, job_log: JobLog, notify: Callable[[str], None]) -> set[str]:
    """Return the keys that a sweep needs; if its record is damaged, those submitted for it and their ancestors."""
    if not (why := record_problem(root, sweep)):
        return keys_of_record(root.read_sweep(sweep))
    notify(f"{why} Jobs that only it needs may be cancelled.")
    return with_ancestors(root, [key for entry in job_log.entries(sweep) for key in entry.keys], notify)


def _inherited_jobs(sweep: str, root: Store, job_log: JobLog, others: Collection[str]) -> list[JobEntry]:
    """Return jobs of this user that other, since cancelled sweeps submitted and that run stages of this sweep."""
    if record_problem(root, sweep):
        return []
    stages = keys_of_record(root.read_sweep(sweep))
    return [
        entry
        for entry in job_log.entries()
        if entry.sweep not in others and entry.user == user() and not stages.isdisjoint(entry.keys)
    ]
