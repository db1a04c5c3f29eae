"""Garbage collection: remove artifacts and work folders that no sweep or job refers to."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

from harness.engine.gc import Garbage, Needed, find_garbage, remove
from harness.engine.store import Store
from harness.errors import SchedulerError, StoreError
from harness.slurm.client import Scheduler, SlurmClient, user
from harness.slurm.job_log import JobLog
from harness.slurm.lock import submission_lock_if_writable
from harness.sweep.status import ignore


def collect(
    root: Store,
    *,
    seconds: float,
    dry_run: bool,
    scheduler: Scheduler | None = None,
    notify: Callable[[str], None] = ignore,
) -> Iterator[Garbage]:
    """Remove folders that no sweep refers to, no process uses and that are old enough; yield each folder.

    All artifacts are kept if it is unknown what is needed: the record of a sweep is damaged, or the queue has a job
    that no job log lists.

    Args:
        root: the store.
        seconds: minimum age of a folder since its last modification.
        dry_run: only list what would be removed.
        scheduler: replaces Slurm in tests.
        notify: receives messages about waiting, and about files that could not be read.

    Raises:
        StoreError: there is no such store, or it cannot be written.
    """
    if not root.root.is_dir():
        raise StoreError(f"There is no store `{root.root}`. Name another one with --store.")
    with ExitStack() as stack:
        locked = stack.enter_context(submission_lock_if_writable(root, notify))
        queued, problems = _queued(root, scheduler or SlurmClient())
        needed = Needed(root, queued=queued)
        found = list(find_garbage(root, needed.keys(), seconds=seconds))
        problems += [f"{why} Everything that it may refer to is kept." for why in needed.damage]
        for problem in problems:
            notify(problem)
        for garbage in found:
            # A local run may have recorded a sweep in the meantime.
            if garbage.what != "damaged" and (problems or garbage.path.name in needed):
                continue
            if not dry_run:
                remove(root, garbage)
                # Once space is freed, another process can take the lock, so this one has to take it first.
                locked = locked or stack.enter_context(submission_lock_if_writable(root, notify))
            yield garbage


def _queued(root: Store, scheduler: Scheduler) -> tuple[set[str], list[str]]:
    """Return the keys of stages whose jobs are in the queue, and the reasons why the set may be incomplete."""
    job_log = JobLog(root.root)
    entries = job_log.latest()
    if not entries and not job_log.damage:
        return set(), []
    try:
        queue = scheduler.queue({entry.user for entry in entries.values()} | {user()})
    except SchedulerError as error:
        # Any submitted job may still be running, so everything that was ever submitted is kept.
        unknown = [f"{error} There may be jobs that the damaged job log no longer lists."]
        return set(entries), unknown if job_log.damage else []
    strays = ", ".join(sorted(job_log.orphans(queue)))
    problems = [f"No job log lists the stages of jobs {strays}; nothing is removed while they are in the queue."]
    return {key for key, entry in entries.items() if entry.job in queue}, problems if strays else []
