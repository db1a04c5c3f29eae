"""The product as a user runs it: the installed command in a process of its own, on the tiny model."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

QUICK = (
    "model.source.steps=250",
    "align.rows=24",
    "align.budget.epochs=1",
    "finetune.rows=40",
    "finetune.budget.epochs=1",
    "evaluation.rows=12",
    "task.test_rows=10",
)
"""Overrides that make a cell take seconds; its numbers mean nothing."""


@dataclass(frozen=True)
class Harness:
    """Runs the command in a folder, on a store of its own."""

    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def environment(self) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HARNESS_", "HF_"))}
        return {**inherited, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "harness", *arguments]

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_heedful,  # noqa: PLW1509
        )

    def __call__(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


def _heedful() -> None:
    """Let the command hear Ctrl-C, also if whoever runs the tests does not: a shell hides it from `make test &`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
