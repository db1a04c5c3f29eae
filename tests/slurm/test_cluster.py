"""The test bed itself: does this Slurm do what the other tests take for granted?"""

import os
from pathlib import Path

import pytest
import submitit
from errands import Patient, hoard, note_and_sleep, refuse, write
from faults import (
    ask,
    ended,
    is_running,
    node_state,
    preempt,
    processes,
    queued,
    recorded,
    restart_slurmctld,
    restarts,
    start_now,
    start_slurmd,
    switch_off,
    wait_until,
)


@pytest.fixture
def executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> submitit.SlurmExecutor:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    made = submitit.SlurmExecutor(tmp_path / "logs with spaces")
    made.update_parameters(time=5, mem="512MB")
    return made


def test_job_that_raises_fails_and_its_child_vanishes(executor: submitit.SlurmExecutor, tmp_path: Path) -> None:
    blocked = {"kill-on-invalid-dep": "yes"}

    parent = executor.submit(refuse)
    executor.update_parameters(dependency=f"afterok:{parent.job_id}", additional_parameters=blocked)
    child = executor.submit(write, tmp_path / "child", "ran")

    assert ended(parent.job_id)[:2] == ("FAILED", "1:0")
    wait_until(lambda: queued(child.job_id) is None)
    assert not (tmp_path / "child").exists()
    assert recorded(child.job_id) == ("CANCELLED", "0:0", "None assigned")


def test_array_of_three_writes_three_results(executor: submitit.SlurmExecutor, tmp_path: Path) -> None:
    names = ["a", "b", "c"]

    jobs = executor.map_array(write, [tmp_path / name for name in names], names)

    assert len({job.job_id.split("_")[0] for job in jobs}) == 1
    assert {ended(job.job_id).state for job in jobs} == {"COMPLETED"}
    assert [(tmp_path / name).read_text() for name in names] == names


def test_user_signal_requeues_the_same_job_with_its_state(executor: submitit.SlurmExecutor, tmp_path: Path) -> None:
    job = executor.submit(Patient(tmp_path / "started"))
    wait_until((tmp_path / "started").exists)

    ask("scancel", "--signal=USR2", job.job_id)
    wait_until(lambda: restarts(job.job_id) == 1)
    start_now(job.job_id)

    assert ended(job.job_id).state == "COMPLETED"
    assert job.result() == 1


def test_worker_killed_fails_its_job(executor: submitit.SlurmExecutor, tmp_path: Path) -> None:
    job = executor.submit(note_and_sleep, tmp_path / "notes", 120)
    wait_until((tmp_path / "notes").exists)

    for process in processes(job.job_id):
        process.kill()

    assert ended(job.job_id).state == "FAILED"


def test_node_that_dies_has_its_job_requeued(executor: submitit.SlurmExecutor, tmp_path: Path) -> None:
    executor.update_parameters(additional_parameters={"nodelist": "n4"})
    job = executor.submit(note_and_sleep, tmp_path / "notes", 120)
    wait_until((tmp_path / "notes").exists)

    switch_off("n4")
    try:
        wait_until(lambda: node_state("n4").startswith("down"), 90)
        wait_until(lambda: restarts(job.job_id) == 1)
        assert not processes(job.job_id)
    finally:
        start_slurmd("n4")

    assert ended(job.job_id).state == "COMPLETED"
    assert job.result() == 2


def test_urgent_job_preempts_and_the_pushed_out_job_ends_later(
    executor: submitit.SlurmExecutor, tmp_path: Path
) -> None:
    executor.update_parameters(additional_parameters={"nodelist": "n3"})
    job = executor.submit(Patient(tmp_path / "started"))
    wait_until((tmp_path / "started").exists)

    urgent = preempt("n3", seconds=1)

    assert ended(urgent).state == "COMPLETED"
    assert restarts(job.job_id) >= 1
    assert ended(job.job_id).state == "COMPLETED"
    assert job.result() == 1


def test_controller_restart_keeps_running_and_waiting_jobs(executor: submitit.SlurmExecutor, tmp_path: Path) -> None:
    parent = executor.submit(Patient(tmp_path / "started"))
    executor.update_parameters(dependency=f"afterok:{parent.job_id}")
    child = executor.submit(write, tmp_path / "child", "ran")
    wait_until((tmp_path / "started").exists)

    restart_slurmctld()

    assert is_running(parent.job_id)
    assert wait_until(lambda: queued(child.job_id)).reason == "Dependency"
    ask("scancel", "--signal=USR2", parent.job_id)
    assert ended(parent.job_id).state == "COMPLETED"
    assert ended(child.job_id).state == "COMPLETED"


def test_job_above_its_memory_is_killed_and_its_log_says_why(executor: submitit.SlurmExecutor) -> None:
    executor.update_parameters(mem="200MB")

    job = executor.submit(hoard, 600)

    assert ended(job.job_id).state == "FAILED"
    assert "exceeded memory limit" in job.paths.stderr.read_text()
