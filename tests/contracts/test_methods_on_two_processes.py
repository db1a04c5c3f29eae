"""Every method computes on two processes what it computes on one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_train_methods import METHODS
from two_processes import everything

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Each method's weights and history, by name, number of processes and rank."""
    out = tmp_path_factory.mktemp("two processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*command, str(HERE / "two_processes.py"), str(out)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]), "OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    everything(out)

    def result(name, processes, rank):
        stem = out / f"{list(METHODS).index(name)}-{processes}-{rank}"
        return load_file(f"{stem}.safetensors"), json.loads(Path(f"{stem}.json").read_text())

    return result


@pytest.mark.parametrize("name", METHODS)
def test_method_on_two_processes_ends_where_it_ends_on_one(name, results):
    (one, history), (two, first), (other, second) = results(name, 1, 0), results(name, 2, 0), results(name, 2, 1)

    assert all(torch.equal(two[weight], other[weight]) for weight in one)
    assert first == second
    for weight, tensor in one.items():
        assert float((two[weight] - tensor).norm() / tensor.norm()) < 1e-5
    # Adam forgives a wrong scale of the gradient; its logged norm does not.
    for ours, theirs in zip(first, history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6)
