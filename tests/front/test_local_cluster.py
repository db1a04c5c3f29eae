import pytest

from harness import cluster
from harness.cluster import Local
from harness.engine.ranks import Processes
from harness.errors import ConfigError
from harness.tracking.jsonl import Jsonl


def executor(settings):
    return settings.executor(sweep="any", tracker=Jsonl(), on_event=lambda event: None)


def test_processes_share_the_training_stages_and_the_cores(monkeypatch):
    monkeypatch.setattr(cluster.os, "sched_getaffinity", lambda pid: set(range(8)))

    found = executor(Local(processes=4, device="cpu"))

    assert found.processes == {"align": Processes(count=4), "finetune": Processes(count=4)}
    assert (found.workers, found.initialize.args) == (1, (2,))


def test_one_process_leaves_the_threads_to_torch():
    assert executor(Local(device="cpu")).initialize.args == (None,)


def test_processes_of_several_workers_are_refused():
    (problem,) = Local(workers=2, processes=2).problems()

    assert problem.startswith("`processes`: 2 for each of 2 workers")


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(cluster, "_device", lambda: "cuda")
    monkeypatch.setattr(cluster, "_gpus", lambda: 2)

    with pytest.raises(ConfigError, match="3 share 2 GPUs"):
        executor(Local(processes=3))
