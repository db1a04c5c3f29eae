"""A scheduler in memory: it keeps what was submitted, and runs it when a test says so, by Slurm's rules for edges."""

import getpass
import os
import signal
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from threading import Lock
from typing import Any, ClassVar

from toys import ALLOW, Silent

from harness.engine.plan import Plan
from harness.engine.stage import Stage
from harness.engine.store import Store
from harness.errors import HarnessError, SchedulerError
from harness.execution.ranks import Processes
from harness.slurm.client import Ended, Queued, Request
from harness.slurm.executor import SlurmExecutor

_LIVING: dict[int, "FakeScheduler"] = {}
"""A pickled job reaches the scheduler that it was submitted to, as a job of Slurm's does."""


@dataclass
class FakeJob:
    """A job, or an element of an array."""

    run: Callable[[], None]
    request: Request
    state: str = "PENDING"
    reason: str = "Priority"
    owner: str = field(default_factory=getpass.getuser)
    priority: int = 1
    script: str = ""


class FakeScheduler:
    """Satisfies ``harness.slurm.client.Scheduler``."""

    dry_run: ClassVar[bool] = False

    def __init__(self, *, first: int = 1) -> None:
        self.requests: list[Request] = []
        self.jobs: dict[str, FakeJob] = {}
        self.ended: dict[str, Ended] = {}
        self.asked: list[str] = []
        self.cancelled: list[str] = []
        self.down = False
        self.accounting = True
        self.before_submit: Callable[[Request], None] = lambda _: None
        self.after_submit: Callable[[Request], None] = lambda _: None
        self._numbers = count(first)
        self._lock = Lock()
        _LIVING[id(self)] = self

    def __reduce__(self) -> tuple[Any, ...]:
        return _living, (id(self),)

    def submit(self, request: Request) -> list[str]:
        self.before_submit(request)
        if self.down:
            raise SchedulerError("sbatch does not answer")
        with self._lock:
            number = next(self._numbers)
            single = len(request.jobs) == 1
            ids = [str(number) if single else f"{number}_{element}" for element in range(len(request.jobs))]
            self.requests.append(request)
            script = request.folder / f".submission_file_{number}.sh"
            script.touch()
            self.jobs |= {
                name: FakeJob(job, request, script=str(script)) for name, job in zip(ids, request.jobs, strict=True)
            }
        self.after_submit(request)
        return ids

    def queue(self, users: Collection[str]) -> dict[str, Queued]:
        self.asked.append("queue")
        if self.down:
            raise SchedulerError("squeue does not answer")
        return {
            name: Queued(job.state, job.reason, "", job.priority, job.script)
            for name, job in self.jobs.items()
            if job.owner in users
        }

    def history(self, jobs: Collection[str]) -> dict[str, Ended] | None:
        self.asked.append("history")
        return {name: ended for name, ended in self.ended.items() if name in set(jobs)} if self.accounting else None

    def cancel(self, jobs: Collection[str]) -> None:
        for name in jobs:
            if name in self.jobs and self.jobs[name].owner != getpass.getuser():
                raise SchedulerError(f"scancel: job {name}: access denied")
            self.cancelled.append(name)
            self.end(name, "CANCELLED")

    def end(self, name: str, state: str, *, exit_code: int = 0, signal: int = 0, nodes: str = "") -> None:
        """Take a job out of the queue."""
        self.jobs.pop(name, None)
        self.ended[name] = Ended(state, exit_code, signal, nodes)

    def work_off(self) -> None:
        """Run what can run, in the order of submission, until nothing can."""
        while ready := next((name for name, job in self.jobs.items() if self._decided(name, job)), None):
            self._execute(ready)

    def _decided(self, name: str, job: FakeJob) -> bool:
        """Say whether a job may run; one whose edge can never be satisfied is ended."""
        if any(self._over(parent) == "bad" for parent in job.request.after_ok):
            job.run = _nothing
            self.ended[name] = Ended("CANCELLED", 0, 0, "")
            return True
        return all(self._over(parent) == "good" for parent in job.request.after_ok) and all(
            self._over(parent) for parent in job.request.after_any
        )

    def _over(self, parent: str) -> str:
        """Return how a job or all of an array ended: good, bad, or nothing yet."""
        mine = [name for name in {*self.jobs, *self.ended} if name == parent or name.startswith(f"{parent}_")]
        if any(name in self.jobs for name in mine):
            return ""
        return "good" if all(self.ended[name].state == "COMPLETED" for name in mine) else "bad"

    def _execute(self, name: str) -> None:
        job = self.jobs[name]
        job.state = "RUNNING"
        code = 0
        with within_job(name):
            try:
                job.run()
            except HarnessError:
                code = 1
            except SystemExit as end:
                code = int(end.code or 0)
        del self.jobs[name]
        self.ended.setdefault(name, Ended("FAILED" if code else "COMPLETED", code, 0, "node1"))


def _living(number: int) -> FakeScheduler:
    return _LIVING[number]


def _nothing() -> None:
    """A job that was ended before it began."""


@contextmanager
def within_job(name: str, **environment: str) -> Iterator[None]:
    """Make this process look like a job, and forget afterwards what the job did to it."""
    number, _, element = name.partition("_")
    named = {"SLURM_JOB_ID": number, "SLURMD_NODENAME": "node1"}
    named |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": element} if element else {}
    before = dict(os.environ)
    umask = os.umask(0o022)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGALRM)}
    try:
        os.environ.update({**named, **environment})
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        os.umask(umask)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@dataclass(frozen=True, kw_only=True)
class FakeSite:
    """Has what is read of ``harness.slurm.settings.Slurm``, for the toys' kinds of stage."""

    joins: tuple[str, ...] = ()
    fans: tuple[str, ...] = ()
    pack: Mapping[str, int] = field(default_factory=dict)
    array_limit: int = 1000
    job_cap: int | None = None
    requeues: int = 3
    python: str | None = None
    grace_seconds: float = 60.0
    allow_drift: bool = False
    on_oom: str = "fail"
    sbatch: Mapping[str, str] = field(default_factory=dict)

    def parameters(self, lines: Sequence[Sequence[str]], pack: int) -> dict[str, Any]:
        kinds = {kind for line in lines for kind in line}
        return {"time": 5 * pack, "comment": "+".join(sorted(kinds)), "additional_parameters": dict(self.sbatch)}

    @property
    def processes(self) -> Mapping[str, Processes]:
        return {}

    def cpus(self, lines: Sequence[Sequence[str]]) -> int:
        return len(lines)

    def device(self, lines: Sequence[Sequence[str]]) -> str:
        return "cpu"


def prepared(threads: int | None) -> None:
    """What every job calls first."""


def executor(scheduler: FakeScheduler, *, sweep: str = "toys-1", **settings: Any) -> SlurmExecutor:
    told = {name: settings.pop(name) for name in ("on_event", "wait", "poll_seconds") if name in settings}
    return SlurmExecutor(
        site=FakeSite(**settings), scheduler=scheduler, sweep=sweep, tracker=Silent(), prepare=prepared, **told
    )


def submit(store: Store, scheduler: FakeScheduler, leaves: Sequence[Stage], **settings: Any):
    """Submit as a process of its own would: with a store that remembers nothing."""
    return executor(scheduler, **settings).run(Plan.of(leaves), Store(store.root, allow=ALLOW))
