"""Two processes that compute together, as under ``torchrun``, forked from one that has imported all they need.

Importing takes a process longer than most of what it is started for. The fork is that of a fresh interpreter: autograd
does not survive one where it has used a GPU.
"""

import gc
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.multiprocessing import start_processes

RANKS = 2


def run_script(script: Path, *arguments: str) -> None:
    """Run a script that calls ``fork``; it prints nothing and ends well."""
    paths = os.pathsep.join(map(str, (Path(__file__).parents[1], Path(__file__).parent, script.parent)))
    ended = subprocess.run(
        [sys.executable, str(script), *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ""


def fork(work: Callable[..., None], arguments: Sequence[Any]) -> None:
    """Call a function in two processes; raise what one of them raises."""
    # What was imported is no garbage: `Trainer` collects at the start of each training.
    gc.freeze()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(_rank, (port, work, arguments), nprocs=RANKS, start_method="fork")


def _rank(rank: int, port: int, work: Callable[..., None], arguments: Sequence[Any]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    work(*arguments)
