"""These tests need a Slurm that may be maltreated: `make slurm-up` starts it. CI fails without it, others skip.

They run on that one alone: nodes die here, and the controller is stopped.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ASKED = "HARNESS_SLURM_BED"
UP = Path("/run/slurm-bed/up")


@pytest.fixture(scope="session", autouse=True)
def slurm() -> None:
    """The cluster of `cluster.sh`, and no other: what these tests do would be rude anywhere else."""
    reason = _why_not()
    if reason and os.environ.get("HARNESS_CI") == "1":
        pytest.fail(f"CI has no Slurm: {reason}", pytrace=False)
    if reason:
        pytest.skip(f"no Slurm to test with (make slurm-up, as root): {reason}")


def _why_not() -> str:
    """Say why there is no Slurm to maltreat: only the throw-away one will do, and only if whoever tests asks for it."""
    if os.environ.get(ASKED) != "1":
        return f"{ASKED} is not 1; `make test-all` sets it"
    if not UP.exists():
        return f"there is no {UP}, which tests/slurm/cluster.sh writes"
    if not shutil.which("scontrol"):
        return "scontrol is not installed"
    try:
        answer = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return "scontrol does not answer within 30 s"
    if answer.returncode:
        return answer.stderr.strip()
    names = [line.split("=")[1].strip() for line in answer.stdout.splitlines() if line.startswith("ClusterName ")]
    expected = UP.read_text().strip()
    return "" if names == [expected] else f"the Slurm that answers is {names}, not `{expected}`"
