"""Runs the tests of 4-bit bases in an environment of its own that has bitsandbytes."""

import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-quantized" / "bin" / "python"
TESTS = (
    "tests/models/test_four_bits.py",
    "tests/models/test_model_sources.py::test_hub_base_in_four_bits_is_a_reference_that_opens_in_four_bits",
    "tests/contracts/test_methods_in_four_bits.py",
)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="this environment has the package: they ran here")
def test_bases_of_bitsandbytes_in_their_environment():
    if not PYTHON.exists():
        missing = "bitsandbytes is missing: run `make quantized`"
        pytest.fail(missing) if os.environ.get("HARNESS_CI") else pytest.skip(missing)

    ended = subprocess.run(
        [str(PYTHON), "-m", "pytest", "-v", "-rs", *TESTS],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=500,
    )

    assert ended.returncode == 0, ended.stdout
    assert "passed" in ended.stdout
    assert "skipped" not in ended.stdout
