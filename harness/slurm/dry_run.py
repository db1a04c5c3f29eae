"""Dry run: a Slurm client that writes the scripts and submits nothing."""

import os
from collections.abc import Collection
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

from harness.slurm.client import Ended, Queued, Request, submit_with_submitit


class DryRun:
    """Writes the scripts that would be submitted."""

    dry_run: ClassVar[bool] = True

    def __init__(self) -> None:
        """Number jobs from 1."""
        self._numbers = count(1)

    def submit(self, request: Request) -> list[str]:
        """Write the script; return numbers in place of job ids."""
        stub = f"#!/bin/sh\necho Submitted batch job {next(self._numbers)}\n"
        path_variable = os.environ.get("PATH", "")
        with TemporaryDirectory() as folder:
            # A stub of `sbatch` on PATH: for arrays submitit creates its own executors, which no subclass replaces.
            for name in ("sbatch", "srun"):
                path = Path(folder) / name
                path.write_text(stub)
                path.chmod(0o755)
            os.environ["PATH"] = os.pathsep.join([folder, path_variable])
            try:
                return submit_with_submitit(request)
            finally:
                os.environ["PATH"] = path_variable

    def queue(self, users: Collection[str]) -> dict[str, Queued]:
        """Return no jobs."""
        del users
        return {}

    def history(self, jobs: Collection[str]) -> dict[str, Ended] | None:
        """Return no jobs."""
        del jobs
        return {}

    def cancel(self, jobs: Collection[str]) -> None:
        """Do nothing."""
