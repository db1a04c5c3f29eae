"""The scheduler: what the house asks of Slurm. Jobs go in through submitit; states are read with Slurm's own commands.

The only user of submitit. Its states are not used: they need accounting, and a job that it has never heard of looks
like one that waits.
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

ASKING_SECONDS = 20.0
"""How long a question to Slurm may take; an accounting database under load answers late or never."""


NEVER = "DependencyNeverSatisfied"


_HELD_STATES = {"REQUEUE_HOLD", "SPECIAL_EXIT"}


_WAITING_STATES = {"PENDING", "REQUEUED", *_HELD_STATES}


UNDER_WAY = {"RUNNING", "COMPLETING", "RESIZING", "SUSPENDED", *_WAITING_STATES}
"""States that the accounting may still tell of a job whose end it has not heard of."""


_HELD = re.compile(r"^JobH[eo]ld|\bheld\b", re.IGNORECASE)
"""Slurm's reasons: `JobHeldUser`, `JobHoldMaxRequeue`, `launch failed requeued held`, `job requeued in held state`."""


class Queued(NamedTuple):
    """A job that is waiting or running.

    Attributes:
        state: Slurm's.
        reason: why it waits, in Slurm's words.
        nodes: where it runs.
        priority: Slurm gives 0 to jobs that are held, and to no others; None if it was not asked for.
        script: the path of what it runs.
    """

    state: str
    reason: str
    nodes: str
    priority: int | None = None
    script: str = ""

    @property
    def alive(self) -> bool:
        """Whether it may still run: some sites keep jobs in the queue whose dependency failed."""
        return self.reason != NEVER

    @property
    def held(self) -> bool:
        """Whether it waits for somebody to release it; Slurm holds jobs itself whose node failed as they started."""
        waits = self.state in _WAITING_STATES
        return self.state in _HELD_STATES or (waits and (self.priority == 0 or bool(_HELD.search(self.reason))))


class Ended(NamedTuple):
    """A job as the accounting remembers it: Slurm's state, exit code and signal, and its nodes."""

    state: str
    exit_code: int
    signal: int
    nodes: str


@dataclass(frozen=True, kw_only=True)
class Request:
    """What one call of sbatch submits.

    Attributes:
        name: of the job, for the queue's display.
        folder: where scripts, logs and frozen jobs lie; on a file system that all nodes see.
        jobs: what runs; more than one is an array.
        after_ok: ids of the jobs that have to succeed first.
        after_any: ids of the jobs that have to end first.
        parameters: of submitit's Slurm executor.
        requeues: how often a job that reached its time limit is requeued.
        python: the command that starts Python on the node; None is this process's own.
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
    """A queue of jobs."""

    dry_run: ClassVar[bool]
    """Whether it only writes scripts."""

    def submit(self, request: Request) -> list[str]:
        """Submit and return the id of each job.

        Raises:
            SchedulerError: the scheduler refused.
        """
        ...

    def queue(self, users: Collection[str]) -> dict[str, Queued]:
        """Return the jobs of these users that have not ended, by id.

        Raises:
            SchedulerError: the scheduler does not answer.
        """
        ...

    def history(self, jobs: Collection[str]) -> dict[str, Ended] | None:
        """Return what is remembered of jobs that have ended; None where there is no accounting."""
        ...

    def cancel(self, jobs: Collection[str]) -> None:
        """End jobs, waiting or running."""
        ...


@dataclass(frozen=True)
class Requeueable:
    """A job that may be put back into the queue as it is: its state is in the store."""

    job: Callable[[], None]

    def __call__(self) -> None:
        """Run the job."""
        self.job()

    def checkpoint(self) -> Any:
        """Return what runs next time, for submitit."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Slurm:
    """The Slurm of this machine."""

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
            # submitit prints what sbatch said, which is in the error as well.
            with redirect_stderr(StringIO()):
                return submitted(request)
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            raise SchedulerError(f"sbatch refused `{request.name}`: {_words(error)}") from error

    def queue(self, users: Collection[str]) -> dict[str, Queued]:
        """Call squeue once."""
        who = ",".join(sorted(users))
        # The script comes last: its path may hold anything.
        text = _asked(["squeue", "--noheader", "--array", "--user", who, "--format", "%i|%T|%r|%N|%Q|%o"])
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
            text = _asked([*command, "JobID,State,ExitCode,NodeList", "--jobs", ",".join(numbers)])
        except SchedulerError:
            return None
        found: dict[str, Ended] = {}
        for line in text.splitlines():
            name, state, code, nodes = line.split("|")[:4]
            number, _, signal = code.partition(":")
            # `CANCELLED by 1000` carries who did it.
            ended = Ended(state.split(" ")[0], int(number or 0), int(signal or 0), nodes.replace("None assigned", ""))
            if ended.state not in UNDER_WAY:
                found |= dict.fromkeys(_elements(name), ended)
        return {name: found[name] for name in jobs if name in found}

    def cancel(self, jobs: Collection[str]) -> None:
        """Call scancel once."""
        if jobs:
            _asked(["scancel", *sorted(jobs)])


def _elements(name: str) -> list[str]:
    """Return the ids in `7`, `7_3` or, elements that never began, `7_[3,5-9]`; none of a list that was cut short."""
    from submitit.slurm.slurm import read_job_id

    found: list[str] = []
    try:
        spans = read_job_id(name)
    except ValueError:
        return found
    for number, *span in spans:
        places = range(int(span[0]), int(span[-1]) + 1) if span else None
        found += [f"{number}_{place}" for place in places] if places else [number]
    return found


def user() -> str:
    """Return who submits."""
    return getpass.getuser()


def submitted(request: Request) -> list[str]:
    """Submit a request through submitit; return the job ids."""
    import submitit

    # A fresh executor for each call: submitit waits between two calls of one.
    # One time-out more than the job allows itself: then it is the job that gives up, and says why.
    submitting = submitit.SlurmExecutor(request.folder, max_num_timeout=request.requeues + 1, python=request.python)
    edges = [
        f"{kind}:{':'.join(ids)}"
        for kind, ids in (("afterok", request.after_ok), ("afterany", request.after_any))
        if ids
    ]
    again = "requeue" if request.requeues else "no-requeue"
    extra = {**request.parameters.get("additional_parameters", {})}
    if edges:
        extra |= {"dependency": ",".join(edges), "kill-on-invalid-dep": "yes"}
    submitting.update_parameters(
        **{
            **request.parameters,
            "wckey": None,
            "job_name": request.name,
            "additional_parameters": {again: True, **extra},
        }
    )
    with _outside_of_jobs(), submitting.batch():
        jobs = [submitting.submit(Requeueable(job)) for job in request.jobs]
    return [str(job.job_id) for job in jobs]


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hide the job that this process may be: what Slurm set for it (its memory) would contradict what is asked for."""
    hidden = {name: value for name, value in os.environ.items() if name.startswith("SLURM_") and name != "SLURM_CONF"}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def _asked(command: Sequence[str]) -> str:
    # A user's own filters and formats would hide jobs, and a long list of array elements would be cut.
    own = ("SQUEUE_", "SACCT_", "SCANCEL_")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    plain["SLURM_BITSTR_LEN"] = "0"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASKING_SECONDS, check=True, env=plain)
    except FileNotFoundError:
        raise SchedulerError(f"there is no `{command[0]}` on this machine; expected a node of the cluster") from None
    except (subprocess.SubprocessError, OSError) as error:
        raise SchedulerError(f"`{command[0]}` does not answer: {_words(error)}") from error
    return done.stdout


def _words(error: BaseException) -> str:
    """Return what a command said, in one line."""
    said = getattr(error, "stderr", None) or str(error)
    text = said.decode() if isinstance(said, bytes) else said
    lines = [
        line for line in text.splitlines() if re.search(r"error|denied|refused|invalid|limit", line, re.IGNORECASE)
    ]
    return " ".join(lines[-2:] or text.split("\n")[-1:])[:300]
