"""Every method and estimator computes on two processes what it computes on one, however their batches are cut."""

import json
from pathlib import Path

import pytest
import torch
from forked_ranks import run_script
from safetensors.torch import load_file
from test_estimated_training import ESTIMATORS, assert_same_estimates, whole_estimates
from test_train_methods import CHOOSING, CUTTABLE, SHARDABLE, assert_same_steps, chosen, own_weights, whole_steps
from two_processes import CASES, CUTS

HERE = Path(__file__).parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder with what each of two processes computed."""
    out = tmp_path_factory.mktemp("two processes")
    run_script(HERE / "two_processes.py", str(out))
    return out


@pytest.fixture(scope="module")
def results(written):
    """Each method's and each estimator's gradients and metrics on two processes, by name, cut and rank."""

    return lambda name, cut, rank: read(written / f"{[*CUTTABLE, *ESTIMATORS].index(name)}-{cut}-{rank}")


def read(stem):
    gradients = load_file(f"{stem}.safetensors")
    return [gradients[step] for step in sorted(gradients)], json.loads(Path(f"{stem}.json").read_text())


@pytest.mark.parametrize(("name", "cut"), CASES)
def test_method_on_two_processes_computes_what_it_computes_on_one(name, cut, results):
    first, second = results(name, cut, 0), results(name, cut, 1)

    assert all(torch.equal(one, other) for one, other in zip(first[0], second[0], strict=True))
    assert first[1] == second[1]
    assert_same_steps(first, whole_steps(name))


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimator_on_two_processes_computes_what_it_computes_on_one(name, cut, results):
    first, second = results(name, cut, 0), results(name, cut, 1)

    assert all(torch.equal(one, other) for one, other in zip(first[0], second[0], strict=True))
    assert first[1] == second[1]
    assert_same_estimates(first, whole_estimates(name))


@pytest.mark.parametrize("name", CHOOSING)
def test_method_chooses_on_two_processes_what_it_chooses_on_one(name, written):
    found = [json.loads((written / f"{name}-{rank}.json").read_text()) for rank in range(2)]

    assert found[0] == found[1] == chosen(name)


@pytest.mark.parametrize("name", SHARDABLE)
def test_method_on_sharded_weights_computes_what_it_computes_on_whole_ones(name, written):
    first, second = (read(written / f"sharded-{SHARDABLE.index(name)}-{rank}") for rank in range(2))

    assert all(torch.equal(one, other) for one, other in zip(first[0], second[0], strict=True))
    assert first[1] == second[1]
    assert_same_steps(first, whole_steps(name, own_weights))


@pytest.mark.parametrize("name", [name for name in CHOOSING if name in SHARDABLE])
def test_method_with_sharded_weights_chooses_what_it_chooses_with_whole_ones(name, written):
    found = [json.loads((written / f"sharded-{name}-{rank}.json").read_text()) for rank in range(2)]

    assert found[0] == found[1] == chosen(name, own_weights)
