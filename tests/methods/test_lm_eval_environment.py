"""Runs `test_lm_eval` in an environment of its own that has lm-evaluation-harness."""

import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PYTHON = HERE.parents[1] / ".venv-lm-eval" / "bin" / "python"


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("lm_eval") is not None, reason="this environment has the package: `test_lm_eval` ran here"
)
def test_tasks_of_lm_eval_in_their_environment():
    if not PYTHON.exists():
        missing = "lm-evaluation-harness is missing: run `make lm-eval`"
        pytest.fail(missing) if os.environ.get("HARNESS_CI") else pytest.skip(missing)

    ended = subprocess.run(
        [str(PYTHON), "-m", "pytest", "-v", "-rs", str(HERE / "test_lm_eval.py")],
        check=False,
        capture_output=True,
        text=True,
        cwd=HERE.parents[1],
        timeout=500,
    )

    assert ended.returncode == 0, ended.stdout
    assert "passed" in ended.stdout
    assert "skipped" not in ended.stdout
