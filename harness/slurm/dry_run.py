"""A Slurm client that writes submissions and submits nothing."""

import os
from collections.abc import Collection
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

from harness.slurm.client import Ended, Queued, Request, submitted


class DryRun:
    """Writes the scripts that Slurm would be given, and submits nothing."""

    dry_run: ClassVar[bool] = True

    def __init__(self) -> None:
        """Count jobs from 1."""
        self._numbers = count(1)

    def submit(self, request: Request) -> list[str]:
        """Write the script and give out a number in place of an id."""
        answer = f"#!/bin/sh\necho Submitted batch job {next(self._numbers)}\n"
        found = os.environ.get("PATH", "")
        with TemporaryDirectory() as folder:
            # An `sbatch` that only answers: submitit makes executors of its own for arrays, which no subclass reaches.
            for name in ("sbatch", "srun"):
                path = Path(folder) / name
                path.write_text(answer)
                path.chmod(0o755)
            os.environ["PATH"] = os.pathsep.join([folder, found])
            try:
                return submitted(request)
            finally:
                os.environ["PATH"] = found

    def queue(self, users: Collection[str]) -> dict[str, Queued]:
        """Nothing waits."""
        del users
        return {}

    def history(self, jobs: Collection[str]) -> dict[str, Ended] | None:
        """Nothing has ended."""
        del jobs
        return {}

    def cancel(self, jobs: Collection[str]) -> None:
        """Nothing to cancel."""
