import pytest

from harness.config.build import cells_of, settings_of
from harness.config.compose import compose
from harness.errors import ConfigError
from harness.execution.ranks import Processes
from harness.local import settings
from harness.local.settings import Local
from harness.tracking.jsonl import Jsonl


def executor(settings):
    return settings.executor(sweep="any", tracker=Jsonl(), on_event=lambda event: None, prepare=print)


def test_processes_share_the_training_stages_and_the_cores(monkeypatch):
    monkeypatch.setattr(settings.os, "sched_getaffinity", lambda pid: set(range(8)))

    found = executor(Local(processes=4, device="cpu"))

    assert found.processes == {"default": Processes(count=4)}
    assert (found.workers, found.initialize.args) == (1, (2,))


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
    assert problem.text.startswith("how a batch is cut")
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


def test_processes_of_several_workers_are_refused():
    (problem,) = Local(workers=2, processes=2).problems()

    assert str(problem).startswith("`processes`: 2 for each of 2 workers")


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(settings, "_default_device", lambda: "cuda")
    monkeypatch.setattr(settings, "_gpu_count", lambda: 2)

    with pytest.raises(ConfigError, match="3 processes need a GPU each, and there are 2"):
        executor(Local(processes=3))
