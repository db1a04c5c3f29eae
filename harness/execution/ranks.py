"""Ranks: one stage run by several processes under ``torchrun``, with a supervisor that holds the claim and commits.

The supervisor is the process of the attempt. It starts the launcher, forwards a request to stop, and reads the report
that each rank writes to a shared folder. It also holds the write end of the ranks' standard input: if the supervisor
dies for any reason, the ranks read end-of-file and exit.
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
"""Key of the resources of every kind of stage that is not listed by name."""
ENTRY = "harness.execution.rank_main"
ARGS_VARIABLE = "HARNESS_RANK_ARGS"
KILLED = "killed"
GRACE_SECONDS = 10.0
"""Time for the launcher to end its ranks; shorter than a worker pool's ``GRACE_SECONDS``."""
_POLL_SECONDS = 0.2
_STOP, _OUTPUT, _REPORT = "stop", "output.txt", "rank-{}.json"
# Slurm signals every process of a job; only the supervisor handles these two. Ignored signals stay ignored after exec.
_IGNORE_SIGNALS = "trap '' USR1 USR2; "
_RUN_ON_ONE_NODE = f'exec "$@" -m {ENTRY}'
_RUN_ON_EACH_NODE = f'exec "$@" --node-rank "$SLURM_PROCID" -m {ENTRY}'
_EXIT_CODE = re.compile(rb"exitcode\s*:\s*(-?\d+)")
# Signals that kill a rank; the launcher then terminates the other ranks with SIGTERM.
_FATAL = (SIGKILL, SIGSEGV, SIGBUS)
MAX_OUTPUT = 4000
"""Characters of the launcher's output to keep if no rank reported an error."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Number of processes per stage and their micro-batch size. A resource: not part of identity.

    Attributes:
        count: processes per node; on GPUs, one per GPU.
        nodes: nodes of the Slurm job; the attempt itself runs on the first.
        sharding: ``ddp``: each process holds the whole model; ``fsdp``: it is sharded, see ``harness.training.fsdp``.
        micro_batch_size: examples per forward pass in each process during training; None is the whole share of a batch.
    """

    count: int = 1
    nodes: int = 1
    sharding: Sharding = "ddp"
    micro_batch_size: int | None = None

    @property
    def total(self) -> int:
        """Total number of processes over all nodes."""
        return self.count * self.nodes

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = counts(self, "count", "nodes", "micro_batch_size")
        if self.sharding not in get_args(Sharding):
            found.append(Problem("sharding", f"`{self.sharding}` is unknown; expected ddp or fsdp"))
        return found

    def provenance(self) -> dict[str, Any]:
        """Return the entries for the manifest; empty for a single process."""
        if self.total == 1:
            return {}
        return {"processes": self.total, "nodes": self.nodes, "sharding": self.sharding}


def processes_of(stage: Stage, by_kind: Mapping[str, Processes]) -> Processes:
    """Return the processes of a stage: those of its kind, or the default.

    A stage that is not ``parallel`` always runs in one process.
    """
    found = by_kind.get(stage.name) or by_kind.get(DEFAULT, Processes())
    return found if stage.parallel else replace(found, count=1, nodes=1)


@dataclass(frozen=True, kw_only=True)
class RankArgs:
    """Arguments of every rank. Pickled into an environment variable, so no pickle is ever read from the store.

    Attributes:
        key: the stage's key; each rank rebuilds the stage from its spec in the store.
        root: the store's folder.
        allow: prefixes of the classes that a stored spec may name.
        tracker: opens the curve, in rank 0.
        initialize: called first in each rank.
        device: a torch device string; with several GPUs, each rank uses that of its local rank.
        out: output folder, which becomes the artifact.
        work: work folder, which survives the attempt.
        folder: holds the stop request, the reports of the ranks, and the launcher's output.
        sharding: see ``Processes``.
        micro_batch_size: see ``Processes``.
        shrink: power of two by which micro-batches are divided after an out-of-memory error.
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
    def from_environment(cls) -> "RankArgs":
        """Return the arguments of this rank."""
        args = pickle.loads(base64.b64decode(os.environ[ARGS_VARIABLE]))
        assert isinstance(args, cls)
        return args

    def stop(self) -> bool:
        """Return whether the supervisor requested a stop."""
        return (self.folder / _STOP).exists()

    def report(self, rank: int, record: Mapping[str, Any]) -> None:
        """Report to the supervisor how a rank ended.

        Args:
            rank: the reporting rank.
            record: ``outcome`` (executed, stopped or failed), ``cause``, ``message``, ``trace``, ``facts``, ``peaks``.
        """
        write_json(self.folder / _REPORT.format(rank), {**record, "time": time.time()})


class RankResult(NamedTuple):
    """What a run with several processes contributes to the manifest.

    Attributes:
        facts: facts of the stage, from rank 0.
        peaks: peak memory of rank 0.
    """

    facts: dict[str, Any]
    peaks: dict[str, Any]


class RankFailed(Exception):
    """A rank failed; describes the first failure.

    Attributes:
        cause: class name of the exception, or ``killed``.
        trace: traceback, if the error is a bug.
    """

    def __init__(self, cause: str, message: str, trace: str = "") -> None:
        """Store the report of the rank."""
        super().__init__(message)
        self.cause = cause
        self.trace = trace


def run_ranks(args: RankArgs, processes: Processes, stop: Callable[[], bool]) -> RankResult:
    """Run a stage in several processes and wait for them.

    Args:
        args: arguments of the ranks.
        processes: their number and nodes.
        stop: polled several times a second; returns whether the stage should stop.

    Raises:
        RankFailed: a rank failed or was killed.
        Stopped: the stage stopped on request, after saving a checkpoint.
        StoreError: the store cannot be written.
    """
    folder = args.folder
    with writing(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    with _launcher(args, processes) as launcher:
        while launcher.poll() is None:
            if stop() and not args.stop():
                with writing(folder):
                    (folder / _STOP).touch()
            with suppress(subprocess.TimeoutExpired):
                launcher.wait(_POLL_SECONDS)
    return _collect_result(folder, launcher.returncode)


@contextmanager
def _launcher(args: RankArgs, processes: Processes) -> Iterator["subprocess.Popen[bytes]"]:
    environment = {
        **os.environ,
        ARGS_VARIABLE: base64.b64encode(pickle.dumps(args)).decode(),
        # Ranks import the same code as the supervisor.
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    # Otherwise torchrun sets it with a warning; `initialize` sets the number of threads.
    environment.setdefault("OMP_NUM_THREADS", "1")
    with (args.folder / _OUTPUT).open("wb") as output:
        launcher = subprocess.Popen(
            _command(processes, args.key),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            # Only the supervisor handles Ctrl-C.
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
    shell = ["sh", "-c", f"{_IGNORE_SIGNALS}{_RUN_ON_ONE_NODE if processes.nodes == 1 else _RUN_ON_EACH_NODE}", "sh"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes.count)]
    if processes.nodes == 1:
        return [*shell, *launch, "--standalone"]
    nodes = str(processes.nodes)
    step = ["srun", "--nodes", nodes, "--ntasks", nodes, "--ntasks-per-node", "1"]
    # Overlaps with the attempt's own step on the first node, and may use all of the job's cores there.
    step += ["--overlap", "--cpu-bind=none", "--kill-on-bad-exit=1"]
    # A static rendezvous, so that rank 0 runs on the supervisor's node.
    rendezvous = ["--nnodes", nodes, "--rdzv-id", key, "--master-addr", socket.gethostname()]
    return [*step, *shell, *launch, *rendezvous, "--master-port", str(_free_port())]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        port: int = found.getsockname()[1]
    return port


def _collect_result(folder: Path, code: int) -> RankResult:
    with reading(folder):
        reports = [json.loads(path.read_text("utf-8")) for path in folder.glob(_REPORT.format("*"))]
        output = (folder / _OUTPUT).read_bytes()
    failures = [report for report in reports if report["outcome"] == "failed"]
    fatal_codes = [number for found in _EXIT_CODE.findall(output) if -(number := int(found)) in _FATAL]
    if failures:
        # User errors first: an error with a traceback, such as a lost connection, may only follow from another rank's.
        first = min(failures, key=lambda report: (bool(report["trace"]), report["time"]))
        if not (fatal_codes and first["trace"]):
            raise RankFailed(first["cause"], first["message"], first["trace"])
    if fatal_codes:
        raise _killed_error(fatal_codes[0])
    if code:
        raise _killed_error(code, output.decode(errors="replace")[-MAX_OUTPUT:])
    if stopped := [report for report in reports if report["outcome"] == "stopped"]:
        raise Stopped(stopped[0]["message"])
    with reading(folder):
        first = json.loads((folder / _REPORT.format(0)).read_text("utf-8"))
    return RankResult(first["facts"], first["peaks"])


def _killed_error(code: int, output: str = "") -> RankFailed:
    message = (
        f"A process of the stage died (exit code {code}). If the machine ran out of memory, run with fewer processes."
    )
    return RankFailed(KILLED, message, output)
