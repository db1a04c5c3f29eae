"""Ranks: one stage run by several processes under ``torchrun``, beside a supervisor that holds the claim and commits.

The supervisor is the process of the attempt. It starts the launcher, passes a request to stop on, and reads what every
rank reported in a folder of its own. Its end of their standard input is what the ranks live by: when it dies, however
it dies, they read the end of the file and exit.
"""

import base64
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGBUS, SIGKILL, SIGSEGV
from typing import Any, NamedTuple, get_args

from harness.engine.checks import counts
from harness.engine.files import reading, write_json, writing
from harness.engine.stage import Sharding, Stage
from harness.engine.tracker import TrackerSettings
from harness.errors import Problem, Stopped

DEFAULT = "default"
"""What stands for every kind of stage that has no resources of its own."""
ENTRY = "harness.execution.rank_main"
ORDERS = "HARNESS_RANK_ORDERS"
KILLED = "killed"
GRACE_SECONDS = 10.0
"""How long the launcher may take to end its ranks, less than a crew leaves to its workers."""
_LOOK_SECONDS = 0.2
_STOP, _OUTPUT, _REPORT = "stop", "output.txt", "rank-{}.json"
# Slurm signals every process of a job; only the supervisor answers these two. What is ignored stays so through exec.
_DEAF = "trap '' USR1 USR2; "
_HERE = f'exec "$@" -m {ENTRY}'
_ON_ITS_NODE = f'exec "$@" --node-rank "$SLURM_PROCID" -m {ENTRY}'
_EXIT_CODE = re.compile(rb"exitcode\s*:\s*(-?\d+)")
# Signals by which a rank dies of itself; the launcher ends the others by SIGTERM.
_FATAL = (SIGKILL, SIGSEGV, SIGBUS)
MOST_SAID = 4000
"""Characters of what the launcher printed that are kept where no rank could tell what happened."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """How many processes share a stage, and how much each may take at once. A resource: never identity.

    Attributes:
        count: processes on each node; on GPUs, one for each.
        nodes: nodes of the Slurm job; the attempt itself runs on the first.
        sharding: ``ddp``, each process holds the whole model; ``fsdp``, its shard of what is not trained.
        micro_batch_size: rows that each may take through the model at once in a training; None is all.
    """

    count: int = 1
    nodes: int = 1
    sharding: Sharding = "ddp"
    micro_batch_size: int | None = None

    @property
    def total(self) -> int:
        """All processes together."""
        return self.count * self.nodes

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = counts(self, "count", "nodes", "micro_batch_size")
        if self.sharding not in get_args(Sharding):
            found.append(Problem("sharding", f"`{self.sharding}` is unknown; expected ddp or fsdp"))
        return found

    def provenance(self) -> dict[str, Any]:
        """Return what the manifest says of them; nothing for one process."""
        if self.total == 1:
            return {}
        return {"processes": self.total, "nodes": self.nodes, "sharding": self.sharding}


def processes_of(stage: Stage, by_kind: Mapping[str, Processes]) -> Processes:
    """Return how many processes share a stage: what is said of its kind, or by default of every kind.

    A stage that cannot be shared runs in one, whatever is said.
    """
    found = by_kind.get(stage.name) or by_kind.get(DEFAULT, Processes())
    return found if stage.parallel else replace(found, count=1, nodes=1)


@dataclass(frozen=True, kw_only=True)
class RankArgs:
    """What every rank is told. Pickled, but handed over in the environment: nothing in a store can be executed.

    Attributes:
        key: of the stage; the rank rebuilds it from the store.
        root: the store's folder.
        allow: prefixes of the classes that a stored spec may name.
        tracker: opens the curve, in the first rank.
        initialize: called first.
        device: a torch device string; of several GPUs each rank takes its own.
        out: becomes the artifact.
        work: survives the attempt.
        folder: where ranks and supervisor tell each other things.
        sharding: what each rank holds of the model.
        micro_batch_size: rows that each rank may take through the model at once; None is all.
        shrink: by how much less memory to use at once.
    """

    key: str
    root: Path
    allow: tuple[str, ...]
    tracker: TrackerSettings
    initialize: Callable[[], None] | None
    device: str
    out: Path
    work: Path
    folder: Path
    sharding: Sharding
    micro_batch_size: int | None
    shrink: int

    @classmethod
    def received(cls) -> "RankArgs":
        """Return the orders of this rank."""
        orders = pickle.loads(base64.b64decode(os.environ[ORDERS]))
        assert isinstance(orders, cls)
        return orders

    def stop(self) -> bool:
        """Say whether the supervisor passed on that the stage should stop."""
        return (self.folder / _STOP).exists()

    def report(self, rank: int, record: Mapping[str, Any]) -> None:
        """Tell the supervisor how a rank ended.

        Args:
            rank: which.
            record: ``outcome`` (executed, stopped or failed), ``cause``, ``message``, ``trace``, ``facts``, ``peaks``.
        """
        write_json(self.folder / _REPORT.format(rank), {**record, "time": time.time()})


class RankResult(NamedTuple):
    """What a shared run gives to the manifest.

    Attributes:
        facts: the first rank's.
        peaks: provenance that only a process that did the work can tell; the first rank's.
    """

    facts: dict[str, Any]
    peaks: dict[str, Any]


class RankFailed(Exception):
    """A rank failed; the first that did speaks for all.

    Attributes:
        cause: the name of its error's class, or ``killed``.
        trace: its traceback, if the error is a bug.
    """

    def __init__(self, cause: str, message: str, trace: str = "") -> None:
        """Keep what the rank reported."""
        super().__init__(message)
        self.cause = cause
        self.trace = trace


def share(orders: RankArgs, processes: Processes, stop: Callable[[], bool]) -> RankResult:
    """Run a stage in several processes, and wait for them.

    Args:
        orders: what they are told.
        processes: how many, and where.
        stop: asked several times a second whether they should stop.

    Raises:
        RankFailed: a rank failed or died.
        Stopped: they were asked to stop, and have saved where the next attempt goes on.
        StoreError: the store cannot be written.
    """
    folder = orders.folder
    with writing(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    with _launched(orders, processes) as launcher:
        while launcher.poll() is None:
            if stop() and not orders.stop():
                with writing(folder):
                    (folder / _STOP).touch()
            with suppress(subprocess.TimeoutExpired):
                launcher.wait(_LOOK_SECONDS)
    return _verdict(folder, launcher.returncode)


@contextmanager
def _launched(orders: RankArgs, processes: Processes) -> Iterator["subprocess.Popen[bytes]"]:
    environment = {
        **os.environ,
        ORDERS: base64.b64encode(pickle.dumps(orders)).decode(),
        # A rank finds the code that its supervisor found.
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    # torchrun would set and announce it; the number of threads is set by `initialize`.
    environment.setdefault("OMP_NUM_THREADS", "1")
    with (orders.folder / _OUTPUT).open("wb") as output:
        launcher = subprocess.Popen(
            _command(processes, orders.key),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            # Ctrl-C is for the supervisor alone.
            start_new_session=True,
        )
    assert launcher.stdin is not None
    try:
        yield launcher
    finally:
        launcher.stdin.close()
        if launcher.poll() is None:
            launcher.terminate()
            try:
                launcher.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(launcher.pid, SIGKILL)
                launcher.wait()


def _command(processes: Processes, key: str) -> list[str]:
    shell = ["sh", "-c", f"{_DEAF}{_HERE if processes.nodes == 1 else _ON_ITS_NODE}", "sh"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes.count)]
    if processes.nodes == 1:
        return [*shell, *launch, "--standalone"]
    nodes = str(processes.nodes)
    step = ["srun", "--nodes", nodes, "--ntasks", nodes, "--ntasks-per-node", "1"]
    # Beside the attempt's own step on the first node, and with all the cores that the job has there.
    step += ["--overlap", "--cpu-bind=none", "--kill-on-bad-exit=1"]
    # A static rendezvous, so that the first rank runs where the supervisor does.
    meeting = ["--nnodes", nodes, "--rdzv-id", key, "--master-addr", socket.gethostname()]
    return [*step, *shell, *launch, *meeting, "--master-port", str(_free_port())]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        port: int = found.getsockname()[1]
    return port


def _verdict(folder: Path, code: int) -> RankResult:
    with reading(folder):
        reports = [json.loads(path.read_text("utf-8")) for path in folder.glob(_REPORT.format("*"))]
        said = (folder / _OUTPUT).read_bytes()
    failures = [report for report in reports if report["outcome"] == "failed"]
    deaths = [number for found in _EXIT_CODE.findall(said) if -(number := int(found)) in _FATAL]
    if failures:
        # What the user can mend is never a consequence; a broken connection is one of what happened in another rank.
        first = min(failures, key=lambda report: (bool(report["trace"]), report["time"]))
        if not (deaths and first["trace"]):
            raise RankFailed(first["cause"], first["message"], first["trace"])
    if deaths:
        raise _died(deaths[0])
    if code:
        raise _died(code, said.decode(errors="replace")[-MOST_SAID:])
    if stopped := [report for report in reports if report["outcome"] == "stopped"]:
        raise Stopped(stopped[0]["message"])
    with reading(folder):
        first = json.loads((folder / _REPORT.format(0)).read_text("utf-8"))
    return RankResult(first["facts"], first["peaks"])


def _died(code: int, said: str = "") -> RankFailed:
    message = (
        f"A process of the stage died (exit code {code}). If the machine ran out of memory, run with fewer processes."
    )
    return RankFailed(KILLED, message, said)
