"""What can go wrong on a cluster, done on purpose: nodes die, the controller restarts, urgent work pushes in.

Everything here acts on the throw-away cluster of `cluster.sh`, as root, and would be rude anywhere else.
"""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import psutil

CLUSTER = Path(__file__).with_name("cluster.sh")
SPOOL = Path("/var/lib/slurm-bed")
PIDS = Path("/run/slurm-bed")

T = TypeVar("T")


class Queued(NamedTuple):
    """One line of squeue: `state` as in RUNNING, `reason` as in BeginTime, `nodes` as in n1 (empty while pending)."""

    state: str
    reason: str
    nodes: str


class Recorded(NamedTuple):
    """What accounting says of a job as a whole (not of its steps)."""

    state: str
    exit_code: str
    nodes: str


def ask(*command: str) -> str:
    """Run a command of Slurm and return what it printed; its complaint is the error message."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip()


def wait_until(predicate: Callable[[], T], timeout: float = 60, *, what: str = "") -> T:
    """Ask again and again until the answer is truthy, and return it; TimeoutError shows the queue as it is then."""
    deadline = time.monotonic() + timeout
    while not (answer := predicate()):
        if time.monotonic() > deadline:
            seen = subprocess.run(["squeue", "--all"], capture_output=True, text=True, check=False)
            raise TimeoutError(f"not within {timeout} s: {what or predicate}\n{seen.stdout}{seen.stderr}")
        time.sleep(0.2)
    return answer


def queued(job: str) -> Queued | None:
    """Where a job (`12`, `12_3`) stands in the queue; None once it has left it."""
    form = "--format=%T|%r|%N"
    listed = subprocess.run(["squeue", "--noheader", "--jobs", job, form], capture_output=True, text=True, check=False)
    lines = listed.stdout.splitlines()
    return Queued(*lines[0].split("|")) if lines else None


def recorded(job: str) -> Recorded | None:
    """The row of accounting of a job (`12`, `12_3`), of its newest run; None while there is none.

    A cancelled job is called "CANCELLED by 0" there; the state here is its first word.
    """
    fields = "--format=JobID,State,ExitCode,NodeList"
    for line in ask("sacct", "--allocations", "--parsable2", "--noheader", "--jobs", job, fields).splitlines():
        name, state, code, nodes = line.split("|")
        if name == job:
            return Recorded(state.split()[0], code, nodes)
    return None


def ended(job: str, timeout: float = 60) -> Recorded:
    """Wait until a job has left the queue and accounting knows how it ended."""

    def end() -> Recorded | None:
        place, row = queued(job), recorded(job)
        unfinished = {"PENDING", "RUNNING", "REQUEUED", "COMPLETING", "CONFIGURING"}
        return row if row and row.state not in unfinished and (not place or place.state not in unfinished) else None

    return wait_until(end, timeout, what=f"the end of job {job}")


def is_running(job: str) -> bool:
    """Does it run now?"""
    place = queued(job)
    return place is not None and place.state == "RUNNING"


def restarts(job: str) -> int:
    """How often the controller has requeued it."""
    shown = ask("scontrol", "--oneliner", "show", "job", job)
    return int(next(word for word in shown.split() if word.startswith("Restarts=")).removeprefix("Restarts="))


def start_now(job: str) -> None:
    """Free a requeued job from waiting for its BeginTime.

    Not after a node failure: the node, when it returns, still ends what it knew under this job's id. Nor at once: it
    revokes its credentials up to the second in which the job ended, and kills a job that starts again within that one.
    """
    ask("scontrol", "update", f"JobId={job}", "StartTime=now+2")


def end_in(job: str, seconds: int) -> None:
    """Let the time limit of a running job strike in that many seconds (the controller looks every 30 s or so)."""
    ask("scontrol", "update", f"JobId={job}", f"EndTime=now+{seconds}")


def preempt(node: str, *, seconds: int = 20) -> str:
    """Occupy a whole node with an urgent job, which pushes out what runs there; returns its id."""
    wish = ["--partition=urgent", f"--nodelist={node}", "--exclusive", "--mem=0", "--output=/dev/null"]
    return ask("sbatch", "--parsable", *wish, f"--wrap=sleep {seconds}")


def processes(job: str) -> list[psutil.Process]:
    """The processes of a job (`12`, `12_3`) that run Python: what a test kills when a worker should die."""
    mark = dict(zip(("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"), job.split("_"), strict=True)) if "_" in job else {}
    return [p for p in _with_environment(**(mark or {"SLURM_JOB_ID": job})) if p.name().startswith("python")]


def node_state(node: str) -> str:
    """As sinfo has it: idle, mixed, allocated, down ...; with a star while the node does not answer."""
    return ask("sinfo", "--noheader", "--partition=debug", f"--nodes={node}", "--format=%T")


def kill_slurmd(node: str) -> None:
    """Cut a node off: its slurmd is gone, its jobs go on unseen.

    After SlurmdTimeout the controller calls the node down and requeues the jobs, so that the old and the new run of a
    job live at the same time, as after a broken network.
    """
    _end_daemon(f"slurmd-{node}", psutil.Process.kill)


@contextmanager
def failing_launches(node: str) -> Iterator[None]:
    """Let no job begin on a node: its slurmd has no folder to keep one in. Slurm puts such jobs back and holds them."""
    folder, away = SPOOL / node, SPOOL / f"{node}.away"
    folder.rename(away)
    folder.touch()
    try:
        yield
    finally:
        folder.unlink()
        away.rename(folder)


def switch_off(node: str) -> None:
    """Let a node lose its power: slurmd and everything that runs there ends at once."""
    kill_slurmd(node)
    inhabitants = _with_environment(SLURMD_NODENAME=node)
    overseers = {p for task in inhabitants for p in _ancestors(task) if p.name().startswith("slurmstepd")}
    for process in [*overseers, *inhabitants]:
        _kill(process)


def start_slurmd(node: str) -> None:
    """Bring a node back; returns when it takes jobs."""
    subprocess.run([CLUSTER, "node", node], check=True)


def restart_slurmctld() -> None:
    """Stop the controller in order, as an administrator does, and start it again; jobs go on meanwhile."""
    stop_slurmctld()
    subprocess.run([CLUSTER, "ctld"], check=True)


def stop_slurmctld() -> None:
    """Stop the controller; it saves its state, and every command of Slurm fails until `restart_slurmctld`."""
    _end_daemon("slurmctld", psutil.Process.terminate)


def _end_daemon(name: str, how: Callable[[psutil.Process], None]) -> None:
    try:
        process = psutil.Process(int((PIDS / f"{name}.pid").read_text()))
    except (FileNotFoundError, psutil.NoSuchProcess):
        return
    how(process)
    wait_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, what=f"the end of {name}")


def _with_environment(**variables: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
        if variables.items() <= environment.items():
            found.append(process)
    return found


def _ancestors(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.parents()
    except psutil.NoSuchProcess:
        return []


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
