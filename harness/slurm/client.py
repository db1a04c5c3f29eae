"""The Slurm client: submits jobs with submitit; queries and cancels them with squeue, sacct and scancel.

The only user of submitit, whose job states are not used: they need accounting, and report an unknown job as pending.
"""

import getpass
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from harness.errors import SchedulerError

TIMEOUT_SECONDS = 20.0
"""Timeout of a Slurm command; an accounting database under load answers late or never."""
NEVER = "DependencyNeverSatisfied"
_HELD_STATES = {"REQUEUE_HOLD", "SPECIAL_EXIT"}
_WAITING_STATES = {"PENDING", "REQUEUED", *_HELD_STATES}
_ACTIVE_STATES = {"RUNNING", "COMPLETING", "RESIZING", "SUSPENDED", *_WAITING_STATES}
"""States of jobs that have not ended; accounting may lag and report them for one that has."""
_HELD = re.compile(r"^JobH[eo]ld|\bheld\b", re.IGNORECASE)
"""Reasons of held jobs: `JobHeldUser`, `JobHoldMaxRequeue`, `launch failed requeued held`,
`job requeued in held state`."""


class Queued(NamedTuple):
    """A job in the queue, pending or running.

    Attributes:
        state: Slurm's job state.
        reason: Slurm's reason why it is pending.
        nodes: nodes that it runs on.
        priority: 0 for held jobs only; None if unknown.
        script: path of its batch script.
    """

    state: str
    reason: str
    nodes: str
    priority: int | None = None
    script: str = ""

    @property
    def alive(self) -> bool:
        """Whether it can still run: some sites keep jobs in the queue whose dependency failed."""
        return self.reason != NEVER

    @property
    def held(self) -> bool:
        """Whether it is held until released; Slurm itself holds a job whose node failed at launch."""
        waits = self.state in _WAITING_STATES
        return self.state in _HELD_STATES or (waits and (self.priority == 0 or bool(_HELD.search(self.reason))))


class Ended(NamedTuple):
    """The accounting record of an ended job: Slurm's state, exit code, signal, and nodes."""

    state: str
    exit_code: int
    signal: int
    nodes: str


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call of sbatch.

    Attributes:
        name: job name.
        folder: folder of scripts, logs and pickled jobs; on a file system shared by all nodes.
        jobs: the callables to run; several form a job array.
        after_ok: ids of jobs that must succeed first (``afterok``).
        after_any: ids of jobs that must end first (``afterany``).
        parameters: parameters of submitit's Slurm executor.
        requeues: maximum number of requeues at the time limit.
        python: command that starts Python on the node; None is this process's interpreter.
    """

    name: str
    folder: Path
    jobs: Sequence[Callable[[], None]]
    after_ok: Sequence[str] = ()
    after_any: Sequence[str] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    requeues: int = 0
    python: str | None = None


class Scheduler(Protocol):
    """A job scheduler."""

    dry_run: ClassVar[bool]
    """Whether it only writes scripts."""

    def submit(self, request: Request) -> list[str]:
        """Submit a request; return the id of each job.

        Raises:
            SchedulerError: the scheduler rejected it.
        """
        ...

    def queue(self, users: Collection[str]) -> dict[str, Queued]:
        """Return the pending and running jobs of these users, by id.

        Raises:
            SchedulerError: the scheduler does not answer.
        """
        ...

    def history(self, jobs: Collection[str]) -> dict[str, Ended] | None:
        """Return the accounting records of ended jobs, by id; None without accounting."""
        ...

    def cancel(self, jobs: Collection[str]) -> None:
        """Cancel pending or running jobs."""
        ...


@dataclass(frozen=True)
class Requeueable:
    """A job that can be requeued unchanged, as its state is in the store."""

    job: Callable[[], None]

    def __call__(self) -> None:
        """Run the job."""
        self.job()

    def checkpoint(self) -> Any:
        """Return the submission that submitit requeues."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class SlurmClient:
    """The Slurm commands on this machine."""

    dry_run: ClassVar[bool] = False

    def submit(self, request: Request) -> list[str]:
        """Call sbatch once."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        if shutil.which("sbatch") is None:
            raise SchedulerError(
                "there is no `sbatch` on this machine; submit from a login node, or write the scripts with "
                "`cluster.dry_run=true`"
            )
        try:
            # submitit prints sbatch's output, which is also in the exception.
            with redirect_stderr(StringIO()):
                return submit_with_submitit(request)
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            raise SchedulerError(f"sbatch rejected `{request.name}`: {_error_text(error)}") from error

    def queue(self, users: Collection[str]) -> dict[str, Queued]:
        """Call squeue once."""
        names = ",".join(sorted(users))
        # The script comes last, as its path may contain the separator.
        text = _run_command(["squeue", "--noheader", "--array", "--user", names, "--format", "%i|%T|%r|%N|%Q|%o"])
        rows = (line.split("|", maxsplit=5) for line in text.splitlines() if line.count("|") >= 5)
        return {
            name.strip(): Queued(state, reason, nodes.strip(), int(priority) if priority.isdigit() else None, script)
            for name, state, reason, nodes, priority, script in rows
        }

    def history(self, jobs: Collection[str]) -> dict[str, Ended] | None:
        """Call sacct once."""
        numbers = sorted({job.partition("_")[0] for job in jobs})
        command = ["sacct", "--noheader", "--parsable2", "--allocations", "--format"]
        try:
            text = _run_command([*command, "JobID,State,ExitCode,NodeList", "--jobs", ",".join(numbers)])
        except SchedulerError:
            return None
        found: dict[str, Ended] = {}
        for line in text.splitlines():
            name, state, code, nodes = line.split("|")[:4]
            number, _, signal = code.partition(":")
            # The state may be followed by a user id: `CANCELLED by 1000`.
            ended = Ended(state.split(" ")[0], int(number or 0), int(signal or 0), nodes.replace("None assigned", ""))
            if ended.state not in _ACTIVE_STATES:
                found |= dict.fromkeys(_elements(name), ended)
        return {name: found[name] for name in jobs if name in found}

    def cancel(self, jobs: Collection[str]) -> None:
        """Call scancel once."""
        if jobs:
            _run_command(["scancel", *sorted(jobs)])


def _elements(name: str) -> list[str]:
    """Return the ids in `7`, `7_3`, or `7_[3,5-9]` (elements that never started); empty for a truncated list."""
    from submitit.slurm.slurm import read_job_id

    found: list[str] = []
    try:
        spans = read_job_id(name)
    except ValueError:
        return found
    for number, *span in spans:
        indices = range(int(span[0]), int(span[-1]) + 1) if span else None
        found += [f"{number}_{index}" for index in indices] if indices else [number]
    return found


def user() -> str:
    """Return the name of the current user."""
    return getpass.getuser()


def submit_with_submitit(request: Request) -> list[str]:
    """Submit a request with submitit; return the job ids."""
    import submitit

    # A new executor per call: submitit sleeps between two calls of the same one.
    # One timeout more than the job's own limit, so that the job itself gives up and records why.
    executor = submitit.SlurmExecutor(request.folder, max_num_timeout=request.requeues + 1, python=request.python)
    dependencies = [
        f"{kind}:{':'.join(ids)}"
        for kind, ids in (("afterok", request.after_ok), ("afterany", request.after_any))
        if ids
    ]
    requeue = "requeue" if request.requeues else "no-requeue"
    extra = {**request.parameters.get("additional_parameters", {})}
    if dependencies:
        extra |= {"dependency": ",".join(dependencies), "kill-on-invalid-dep": "yes"}
    executor.update_parameters(
        **{
            **request.parameters,
            "wckey": None,
            "job_name": request.name,
            "additional_parameters": {requeue: True, **extra},
        }
    )
    with _without_job_environment(), executor.batch():
        jobs = [executor.submit(Requeueable(job)) for job in request.jobs]
    return [str(job.job_id) for job in jobs]


@contextmanager
def _without_job_environment() -> Iterator[None]:
    """Hide the SLURM_ variables of a surrounding job: they (such as its memory) would conflict with the request."""
    hidden = {name: value for name, value in os.environ.items() if name.startswith("SLURM_") and name != "SLURM_CONF"}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def _run_command(command: Sequence[str]) -> str:
    # The user's own filters and formats could hide jobs; SLURM_BITSTR_LEN=0 avoids truncated lists of array elements.
    prefixes = ("SQUEUE_", "SACCT_", "SCANCEL_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    environment["SLURM_BITSTR_LEN"] = "0"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True, env=environment
        )
    except FileNotFoundError:
        raise SchedulerError(f"there is no `{command[0]}` on this machine; expected a node of the cluster") from None
    except (subprocess.SubprocessError, OSError) as error:
        raise SchedulerError(f"`{command[0]}` does not respond: {_error_text(error)}") from error
    return done.stdout


def _error_text(error: BaseException) -> str:
    """Return a command's error output, in one line."""
    stderr = getattr(error, "stderr", None) or str(error)
    text = stderr.decode() if isinstance(stderr, bytes) else stderr
    lines = [
        line for line in text.splitlines() if re.search(r"error|denied|refused|invalid|limit", line, re.IGNORECASE)
    ]
    return " ".join(lines[-2:] or text.split("\n")[-1:])[:300]
