"""The product as a user runs it: the installed command in a process of its own, on the tiny model."""

import atexit
import functools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from composed import compose
from filelock import FileLock

from harness.config.build import cells_of
from harness.engine.plan import Plan
from harness.engine.store import Store
from harness.local.executor import LocalExecutor

QUICK = (
    "model.source.steps=250",
    "align.rows=24",
    "align.budget.epochs=1",
    "finetune.rows=40",
    "finetune.budget.epochs=1",
    "evaluation.rows=12",
    "task.test_rows=10",
    "over_refusal.prompts.rows=12",
)
"""Overrides that make a cell take seconds; its numbers mean nothing."""
TWO_SCORES = ("over_refusal=none", *(each for each in QUICK if not each.startswith("over_refusal")))
"""The same without the score of over-refusal, which takes a third of the answers."""


TIMEOUT_SECONDS = 300


def clean() -> dict[str, str]:
    """The environment of a user who has set nothing."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HARNESS_", "HF_"))}
    return {**inherited, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


class Nursery:
    """Where commands are forked, so that not each of them imports the program; see ``nursery.py``."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nursery.py"))],
            env=clean(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        atexit.register(self.end)

    def end(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def start(self, arguments: tuple[str, ...], folder: Path, environment: dict[str, str]) -> "Command":
        """Start a command; the caller ends it."""
        told = Path(tempfile.mkdtemp())
        out, err = told / "out", told / "err"
        command = {"arguments": arguments, "folder": str(folder), "environment": environment}
        pid = self.ask(command | {"out": str(out), "err": str(err)})
        assert pid is not None
        return Command(self, pid, arguments, out, err)

    def ask(self, request: dict[str, object]) -> int | None:
        """Return the answer to a request; None, and the end of all commands, if there is none in time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        if select.select([self._process.stdout], [], [], TIMEOUT_SECONDS)[0]:
            return int(self._process.stdout.readline())
        self.end()
        nursery.cache_clear()
        return None


@dataclass(frozen=True)
class Command:
    """A command that was forked."""

    nursery: Nursery
    pid: int
    arguments: tuple[str, ...]
    out: Path
    err: Path

    def is_running(self) -> bool:
        return psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def end(self) -> "subprocess.CompletedProcess[str]":
        """Wait for its end; nothing else is forked meanwhile."""
        code = self.nursery.ask({"wait": self.pid})
        out, err = self.out.read_text(), self.err.read_text()
        shutil.rmtree(self.out.parent)
        if code is None:
            raise subprocess.TimeoutExpired(self.arguments, TIMEOUT_SECONDS, out, err)
        return subprocess.CompletedProcess(self.arguments, code, out, err)


nursery = functools.cache(Nursery)


def shared(folders: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that is made once, for all processes of the tests; nobody may write to it."""
    own = folders.getbasetemp()
    made = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name / "made"
    made.parent.mkdir(exist_ok=True)
    with FileLock(made.parent / "lock"):
        if not made.exists():
            making = Path(tempfile.mkdtemp(dir=made.parent))
            make(making)
            making.rename(made)
    return made


def shared_base(folders: pytest.TempPathFactory) -> Path:
    """Return a store that holds the base model of `QUICK` alone: its training takes longer than the rest of a cell."""

    def make(store: Path) -> None:
        (cell,) = cells_of(compose(QUICK))
        assert LocalExecutor().run(Plan.of([cell.stages["base"]]), Store(store)).complete

    return shared(folders, "base", make)


@dataclass(frozen=True)
class Harness:
    """Runs the command in a folder, on a store of its own."""

    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def environment(self) -> dict[str, str]:
        return clean()

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "harness", *arguments]

    def fork(self, *arguments: str) -> Command:
        """Start a command like ``__call__``, and do not wait."""
        return nursery().start(arguments, self.folder, self.environment)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start a command in a fresh interpreter."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end; in a fresh interpreter if it is another one, or if its imports see its environment.

        What a ``PYTHONPATH`` adds is imported by the command itself.
        """
        ours = self.command()[0] == sys.executable
        if ours and all(name.startswith("HARNESS_") or name == "PYTHONPATH" for name in environment):
            return nursery().start(arguments, self.folder, self.environment | environment).end()
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
