import json
from pathlib import Path

import pytest
import torch
from distributed_run import NAMES, SHARDED, SHARDED_WEIGHTS, STOPPED, everything
from forked_ranks import run_script
from safetensors.torch import load_file

HERE = Path(__file__).parent
QUICK = ("sft", "booster")


def runs(*names):
    """Parameters for a test: what is run for it is not run unless it is selected."""
    return [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def results(tmp_path_factory, request):
    """The weights and history of every method that a selected test looks at, by name, number of processes and rank."""
    out = tmp_path_factory.mktemp("distributed")
    selected = {item.callspec.params["name"] for item in request.session.items if item.path == request.path}
    names = [name for name in NAMES if name in selected]
    run_script(HERE / "distributed_run.py", str(out), *names)
    everything(out, names)

    def result(name, processes, rank):
        stem = out / f"{name}-{processes}-{rank}"
        return load_file(f"{stem}.safetensors"), json.loads(Path(f"{stem}.json").read_text())

    return result


@pytest.mark.slow
@pytest.mark.parametrize("name", runs(*NAMES))
def test_two_processes_end_with_equal_weights_and_histories(name, results):
    (first, first_history), (second, second_history) = results(name, 2, 0), results(name, 2, 1)

    assert all(torch.equal(first[weight], second[weight]) for weight in first)
    assert first_history == second_history


@pytest.mark.slow
@pytest.mark.parametrize("name", runs(*NAMES))
def test_two_processes_compute_what_one_process_with_the_same_global_batches_computes(name, results):
    (one, one_history), (two, two_history) = results(name, 1, 0), results(name, 2, 0)

    for weight, tensor in one.items():
        assert float((two[weight] - tensor).norm() / tensor.norm()) < 1e-5
    # Adam forgives a wrong scale of the gradient; its logged norm does not.
    for ours, theirs in zip(two_history, one_history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("name", runs(*STOPPED))
def test_run_that_is_stopped_and_resumed_ends_bitwise_where_it_would_have(name, processes, results):
    for rank in range(processes):
        (whole, whole_history), (resumed, history) = (
            results(run, processes, rank) for run in (name, f"stopped-{name}")
        )

        assert all(torch.equal(whole[weight], resumed[weight]) for weight in whole)
        assert history == whole_history


@pytest.mark.slow
@pytest.mark.parametrize("name", runs(*SHARDED))
def test_sharded_base_changes_no_number_and_half_of_it_lies_in_each_process(name, results):
    whole, whole_history = results(name, 2, 0)

    for rank in (0, 1):
        weights, (*history, last) = results(f"sharded-{name}", 2, rank)

        assert last["held"] == pytest.approx(0.5, abs=0.01)
        assert all(torch.equal(whole[weight], weights[weight]) for weight in whole)
        assert history == whole_history


@pytest.mark.slow
@pytest.mark.parametrize("name", runs(SHARDED_WEIGHTS))
def test_sharded_weights_end_where_whole_ones_end_up_to_rounding_and_half_of_them_lies_in_each_process(name, results):
    whole, whole_history = results(name, 2, 0)

    for rank in (0, 1):
        weights, (*history, last) = results(f"sharded-{name}", 2, rank)

        assert last["held"] == pytest.approx(0.5, abs=0.01)
        for weight, tensor in whole.items():
            assert float((weights[weight] - tensor).norm() / tensor.norm()) < 1e-5
        for ours, theirs in zip(history, whole_history, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", runs(SHARDED_WEIGHTS))
def test_run_with_sharded_weights_that_is_stopped_and_resumed_ends_bitwise_where_it_would_have(name, results):
    for rank in (0, 1):
        whole, (*whole_history, _) = results(f"sharded-{name}", 2, rank)
        resumed, history = results(f"stopped-sharded-{name}", 2, rank)

        assert all(torch.equal(whole[weight], resumed[weight]) for weight in whole)
        assert history == whole_history
