"""Cancel a sweep: end the jobs that no other sweep needs."""

from collections.abc import Callable, Collection
from typing import NamedTuple

from harness.engine.gc import keys_of_record, record_problem, with_ancestors
from harness.engine.lookup import resolve_sweep
from harness.engine.store import Store
from harness.errors import StoreError
from harness.slurm.client import Scheduler, SlurmClient, user
from harness.slurm.job_log import JobEntry, JobLog
from harness.slurm.lock import submission_lock_if_writable
from harness.sweep.status import nobody


class Cancelled(NamedTuple):
    """A sweep that was cancelled: the jobs that were ended, and those that another sweep needs."""

    sweep: str
    ended: list[str]
    spared: list[str]


def cancel(
    root: Store, name: str | None, scheduler: Scheduler | None = None, tell: Callable[[str], None] = nobody
) -> Cancelled:
    """End the jobs of a sweep that no other sweep needs; needs no space on the disk.

    Args:
        root: the store.
        name: the sweep's id or how it begins; None is the latest.
        scheduler: Slurm, unless a test stands in for it.
        tell: is told what is waited for, and what could not be read or written.

    Raises:
        StoreError: there is no such sweep.
        SchedulerError: Slurm does not answer.
    """
    asked = scheduler or SlurmClient()
    sweep = resolve_sweep(root, name)
    ledger = JobLog(root.root)
    # A submission under way sees the mark and stops; only then is it known which jobs there are.
    try:
        ledger.cancel(sweep)
    except StoreError as error:
        tell(f"{error} The jobs are ended; that the sweep was cancelled is not noted, so cancel it again then.")
    with submission_lock_if_writable(root, tell):
        queue = asked.queue({entry.user for entry in ledger.entries()} | {user()})
        known = set(root.sweep_ids())
        others = [other for other in ledger.sweeps() if other != sweep and other in known]
        needed = set().union(*(_needed_by(other, root, ledger, tell) for other in others))
        left = _left_to(sweep, root, ledger, others)
        ours = {entry.job: set(entry.keys) for entry in (*ledger.entries(sweep), *left) if entry.job in queue}
        ours |= {job: set() for job in ledger.orphans(queue, sweep)}
        spared = {job for job, keys in ours.items() if needed.intersection(keys)}
        asked.cancel(ours.keys() - spared)
        for problem in ledger.damage:
            tell(problem)
    return Cancelled(sweep, sorted(ours.keys() - spared), sorted(spared))


def _needed_by(sweep: str, root: Store, ledger: JobLog, tell: Callable[[str], None]) -> set[str]:
    """Return the keys that a sweep needs; of one whose record is damaged, what was submitted for it and its parents."""
    if not (why := record_problem(root, sweep)):
        return keys_of_record(root.read_sweep(sweep))
    tell(f"{why} Jobs that only it needs may be ended.")
    return with_ancestors(root, [key for entry in ledger.entries(sweep) for key in entry.keys], tell)


def _left_to(sweep: str, root: Store, ledger: JobLog, others: Collection[str]) -> list[JobEntry]:
    """Return the jobs of this user that sweeps which were cancelled before have left to this one."""
    if record_problem(root, sweep):
        return []
    stages = keys_of_record(root.read_sweep(sweep))
    return [
        entry
        for entry in ledger.entries()
        if entry.sweep not in others and entry.user == user() and not stages.isdisjoint(entry.keys)
    ]
