"""Every method computes on two processes, a row at a time, what it computes on one with pieces of another size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_train_methods import METHODS, uninterrupted

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Each method's weights and history on two processes, by name and rank."""
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

    def result(name, rank):
        stem = out / f"{list(METHODS).index(name)}-{rank}"
        return load_file(f"{stem}.safetensors"), json.loads(Path(f"{stem}.json").read_text())

    return result


@pytest.mark.parametrize("name", METHODS)
def test_method_on_two_processes_ends_where_it_ends_on_one(name, results):
    (report, one), (two, first), (other, second) = uninterrupted(name), results(name, 0), results(name, 1)

    assert all(torch.equal(two[weight], other[weight]) for weight in one)
    assert first == second
    for weight, tensor in one.items():
        assert float((two[weight] - tensor).norm() / tensor.norm()) < 1e-5
    # Adam forgives a wrong scale of the gradient; its logged norm does not.
    for ours, theirs in zip(first, report.history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6)
