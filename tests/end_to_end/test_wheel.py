"""The package works from a wheel, without the checkout."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from product import Harness

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_wheel_brings_configuration_sweeps_and_plugin(tmp_path):
    wheel = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-w", "wheels"]
    subprocess.run(wheel, cwd=tmp_path, check=True, capture_output=True)
    (built,) = (tmp_path / "wheels").glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", "site", str(built)]
    subprocess.run(install, cwd=tmp_path, check=True, capture_output=True)

    run = partial(
        subprocess.run,
        cwd=tmp_path,
        env=Harness(tmp_path).environment | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    plan = run(Harness(tmp_path).command("plan", "-m", "+sweeps=demo", "--json"))
    where = run(
        [sys.executable, "-c", "import harness.report.data.targets as t; print(t.__file__, len(t.read_targets()))"]
    )

    assert plan.returncode == where.returncode == 0, plan.stderr + where.stderr
    assert json.loads(plan.stdout)["cells"] == 27
    assert where.stdout.startswith(str(tmp_path / "site"))
    assert int(where.stdout.split()[-1]) > 0, "the published targets travel in the wheel"
