"""These tests need a Slurm that may be maltreated: `make slurm-up` starts one. CI fails without it, others skip."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# The toy stages of the engine's tests, and the command of the end-to-end tests.
sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("engine", "end_to_end")]


@pytest.fixture(scope="session", autouse=True)
def slurm() -> None:
    """A cluster that answers."""
    reason = _why_not()
    if reason and os.environ.get("HARNESS_CI") == "1":
        pytest.fail(f"CI has no Slurm: {reason}", pytrace=False)
    if reason:
        pytest.skip(f"no Slurm to test with (make slurm-up, as root): {reason}")


def _why_not() -> str:
    if not shutil.which("sinfo"):
        return "sinfo is not installed"
    try:
        answer = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return "sinfo does not answer within 30 s"
    return answer.stderr.strip() if answer.returncode else ""
