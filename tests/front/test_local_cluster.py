from pathlib import Path

import pytest
from composed import compose

from harness.cli.doctor import examine
from harness.config.build import cells_of, settings_of
from harness.engine.stage import lineage
from harness.errors import ConfigError
from harness.execution.ranks import Processes
from harness.local import settings
from harness.local.ready_queue import base_of
from harness.local.settings import Local
from harness.tracking.jsonl import Jsonl


def executor(settings):
    return settings.executor(sweep="any", tracker=Jsonl(), on_event=lambda event: None, prepare=print)


def test_processes_share_the_training_stages_and_the_cores(monkeypatch):
    monkeypatch.setattr(settings.os, "sched_getaffinity", lambda pid: set(range(8)))

    found = executor(Local(processes=4, device="cpu"))

    assert found.processes == {"default": Processes(count=4)}
    assert (found.workers, found.initialize.args) == (1, (2,))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("null", {"align": None, "finetune": None, "repair": None}),
        ("2", {"align": 2, "finetune": 2, "repair": 2}),
        ("{align: 4, finetune: 2}", {"align": 4, "finetune": 2, "repair": None}),
    ],
)
def test_rows_at_once_are_told_to_the_kinds_that_train(given, expected):
    for place in ("local", "slurm"):
        (composition,) = compose([f"cluster={place}", f"cluster.micro_batch_size={given}"])
        settings = settings_of(composition).cluster
        processes = executor(settings).processes if place == "local" else settings.processes

        found = {kind: processes.get(kind, processes["default"]).micro_batch_size for kind in expected}
        assert found == expected


@pytest.mark.parametrize("device", ["tpu", "cuda:", "gpu", "cuda:x", "1"])
def test_device_that_is_none_is_refused_before_anything_runs(device):
    (composition,) = compose([f"cluster.device='{device}'"])

    with pytest.raises(ConfigError, match=r"`cluster.device`: .* is no device; expected `auto`, `cpu`, `cuda` or"):
        settings_of(composition)


@pytest.mark.parametrize("place", ["local", "slurm"])
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("0", "`cluster.micro_batch_size`: 0 is too small"),
        ("{align: 0}", "`cluster.micro_batch_size.align`: 0 is too small"),
        ("{grade: 2}", "`cluster.micro_batch_size.grade`: unknown setting"),
    ],
)
def test_rows_at_once_that_cannot_be_are_named(given, words, place):
    (composition,) = compose([f"cluster={place}", f"cluster.micro_batch_size={given}"])

    with pytest.raises(ConfigError) as caught:
        settings_of(composition)

    assert words in str(caught.value)


@pytest.mark.parametrize("override", ["finetune.budget.micro_batch_size=1", "+align.budget.micro_batch_size=null"])
def test_budget_that_still_cuts_batches_is_told_where_that_is_set(override):
    with pytest.raises(ConfigError) as caught:
        cells_of(compose([override]))

    (problem,) = caught.value.problems
    assert problem.path == override.strip("+").partition("=")[0]
    assert problem.text.startswith("the micro-batch size no longer affects results")
    assert "`cluster.micro_batch_size=4`" in problem.text


def test_rows_at_once_change_no_key():
    keys = [
        [stage.key for stage in cell.stages.values()]
        for given in ("null", "1")
        for cell in cells_of(compose([f"cluster.micro_batch_size={given}"]))
    ]

    assert keys[0] == keys[1]


def test_one_process_leaves_the_threads_to_torch():
    assert executor(Local(device="cpu")).initialize.args == (None,)


def gpus(monkeypatch, *names: str) -> None:
    monkeypatch.setattr(settings, "visible_gpus", lambda: names)


@pytest.mark.parametrize(
    ("given", "names", "expected"),
    [
        ({}, ("2", "5", "7"), (3, ("2", "5", "7"), "cuda")),
        ({}, (), (1, (), "cpu")),
        ({"workers_per_gpu": 4}, ("GPU-a", "GPU-b"), (8, ("GPU-a", "GPU-b"), "cuda")),
        ({"workers_per_gpu": 4}, (), (1, (), "cpu")),
        ({"workers": 8}, ("0", "1"), (8, ("0", "1"), "cuda")),
        ({"workers": 2}, (), (2, (), "cpu")),
        ({"processes": 2}, ("0", "1", "2", "3", "4"), (2, ("0,1", "2,3"), "cuda")),
        ({"processes": 2}, (), (1, (), "cpu")),
        ({"workers": 2, "processes": 2}, ("0", "1", "2", "3"), (2, ("0,1", "2,3"), "cuda")),
        ({"workers": 2, "processes": 2}, (), (2, (), "cpu")),
        ({}, ("MIG-a", "MIG-b"), (2, ("MIG-a", "MIG-b"), "cuda")),
        ({"device": "cpu", "workers_per_gpu": 2}, ("0", "1"), (1, (), "cpu")),
        ({"device": "cuda:1"}, ("4", "6"), (1, ("6",), "cuda")),
        ({"device": "cuda:1", "workers": 2}, ("0", "1"), (2, ("1",), "cuda")),
    ],
)
def test_workers_are_placed_on_the_gpus_that_there_are(monkeypatch, given, names, expected):
    gpus(monkeypatch, *names)

    assert Local(**given).placement() == expected
    assert Local(**given).problems() == []


def test_workers_of_several_processes_divide_the_cores(monkeypatch):
    monkeypatch.setattr(settings.os, "sched_getaffinity", lambda pid: set(range(8)))
    gpus(monkeypatch, "0", "1", "2", "3")

    found = executor(Local(processes=2))

    assert (found.workers, found.gpus, found.device) == (2, ("0,1", "2,3"), "cuda")
    assert found.initialize.args == (2,)


@pytest.mark.parametrize(
    ("given", "names", "words"),
    [
        ({"processes": 3}, ("0", "1"), "`cluster.processes`: 3 processes need a GPU each, and there are 2"),
        ({"processes": 2}, ("MIG-a", "MIG-b"), "`cluster.processes`: 2 processes cannot share MIG instances"),
        (
            {"workers": 3, "processes": 2},
            ("0", "1", "2", "3"),
            "`cluster.workers`: 3 workers of 2 processes need 6 GPUs, and there are 4; expected `auto` or at most 2",
        ),
        ({"device": "cuda"}, (), "`cluster.device`: cuda was requested"),
        ({"device": "cuda:0", "processes": 2}, ("0", "1"), "2 processes cannot share cuda:0; expected `cuda`"),
        ({"device": "cuda:2"}, ("0", "1"), "`cluster.device`: cuda:2 was requested, and there are 2 GPUs"),
        ({"device": "cuda:0"}, (), "`cluster.device`: cuda:0 was requested"),
    ],
)
def test_workers_that_do_not_fit_the_gpus_are_refused(monkeypatch, given, names, words):
    gpus(monkeypatch, *names)

    with pytest.raises(ConfigError) as caught:
        executor(Local(**given))

    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["cluster.workers=0"], "`cluster.workers`: 0 is too small"),
        (["cluster.workers=many"], "`cluster.workers`: 'many' is"),
        (["cluster.workers_per_gpu=0"], "`cluster.workers_per_gpu`: 0 is too small"),
        (["cluster.workers=2", "cluster.workers_per_gpu=2"], "`cluster.workers_per_gpu`: 2 has no effect"),
        (["cluster.processes=2", "cluster.workers_per_gpu=2"], "`cluster.workers_per_gpu`: 2 workers cannot share"),
    ],
)
def test_workers_that_cannot_be_are_named(given, words):
    (composition,) = compose(given)

    with pytest.raises(ConfigError) as caught:
        settings_of(composition)

    assert words in str(caught.value)


def test_doctor_tells_which_workers_there_will_be(monkeypatch):
    gpus(monkeypatch, "4", "7")

    (found,) = [finding for finding in examine(Path("nowhere")) if finding.subject == "workers"]

    assert found.detail == "2 with cluster=local, one per GPU (4, 7)"


def test_stages_that_load_the_base_name_the_one_that_is_kept_for_them():
    (cell,) = cells_of(compose(["defense=antidote", "attack_ratio=p10"]))
    (base,) = [stage for stage in cell.stages.values() if stage.name == "base"]

    found = {stage.name: base_of(stage) for stage in lineage(tuple(cell.stages.values()))}

    loading = dict.fromkeys(("align", "finetune", "repair", "generate"), base.key)
    assert found == {"base": "", "poison": "", "grade": "", **loading}
