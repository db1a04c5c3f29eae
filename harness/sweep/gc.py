"""Garbage collection: remove what no sweep names."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

from harness.engine.gc import Garbage, Needed, find_garbage, remove
from harness.engine.store import Store
from harness.errors import SchedulerError, StoreError
from harness.slurm.client import Scheduler, SlurmClient, user
from harness.slurm.job_log import JobLog
from harness.slurm.lock import submission_lock_if_writable
from harness.sweep.status import nobody


def collect(
    root: Store,
    *,
    seconds: float,
    dry_run: bool,
    scheduler: Scheduler | None = None,
    tell: Callable[[str], None] = nobody,
) -> Iterator[Garbage]:
    """Remove what no sweep names, nothing works on and nobody touched for so long; return each folder.

    What cannot be known stays: all artifacts, if the record of a sweep is damaged, or if a job is in the queue of which
    no ledger knows what it runs.

    Args:
        root: the store.
        seconds: how long a folder must have been left alone.
        dry_run: only say what would go.
        scheduler: Slurm, unless a test stands in for it.
        tell: is told what is waited for, and what could not be read.

    Raises:
        StoreError: there is no such store, or it cannot be written.
    """
    if not root.root.is_dir():
        raise StoreError(f"There is no store `{root.root}`. Name another one with --store.")
    with ExitStack() as lock:
        mine = lock.enter_context(submission_lock_if_writable(root, tell))
        queued, problems = _queued(root, scheduler or SlurmClient())
        needed = Needed(root, queued=queued)
        found = list(find_garbage(root, needed.keys(), seconds=seconds))
        problems += [f"{why} What it may name stays." for why in needed.damage]
        for problem in problems:
            tell(problem)
        for garbage in found:
            # A sweep that runs here may have been asked for since.
            if garbage.what != "damaged" and (problems or garbage.path.name in needed):
                continue
            if not dry_run:
                remove(root, garbage)
                # From the first bytes on there is room for somebody else's turn, so for this one's.
                mine = mine or lock.enter_context(submission_lock_if_writable(root, tell))
            yield garbage


def _queued(root: Store, scheduler: Scheduler) -> tuple[set[str], list[str]]:
    """Return the keys of stages whose jobs are in the queue, and why that may not be all of them."""
    ledger = JobLog(root.root)
    entries = ledger.latest()
    if not entries and not ledger.damage:
        return set(), []
    try:
        queue = scheduler.queue({entry.user for entry in entries.values()} | {user()})
    except SchedulerError as error:
        # Nobody can say that its jobs have ended, so all that was ever submitted stays.
        unknown = [f"{error} Nobody can say whether jobs are left that the ledger does not name."]
        return set(entries), unknown if ledger.damage else []
    strays = ", ".join(sorted(ledger.orphans(queue)))
    problems = [f"No ledger names what the jobs {strays} run, so that all stays while they are in the queue."]
    return {key for key, entry in entries.items() if entry.job in queue}, problems if strays else []
