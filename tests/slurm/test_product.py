"""The product on the real cluster, as its user meets it: the same cells locally and through Slurm, disturbed."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
from faults import ask, is_running, processes, queued, wait_until
from product import TWO_SCORES, Harness, shared_base
from test_sweepers import OPTUNA, WithOptuna

from harness.slurm.job_log import JobLog

CELLS = ("-m", "experiment=tiny", "defense=sft", "attack_ratio=p00,p10")
SMALL = tuple(f"cluster.resources.{kind}.mem_gb=1" for kind in ("base", "align", "finetune", "generate", "grade"))
SCORES = ("hs", "hs_plus", "fa", "aligned_hs", "aligned_fa")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    made = tmp_path / "local", tmp_path / "on slurm"
    for folder in made:
        folder.mkdir()
    return made


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds the base model of `QUICK` alone."""
    return shared_base(tmp_path_factory)


def scores(harness) -> dict[tuple[str, ...], tuple[str, ...]]:
    """The numbers of the table, by defense and ratio."""
    rows = csv.DictReader(harness("report", "--format", "csv").stdout.splitlines())
    return {(row["defense"], row["ratio"]): tuple(row[name] for name in SCORES) for row in rows}


def status(harness) -> dict:
    return json.loads(harness("status", "--json").stdout)


def is_over(harness) -> bool:
    """Whether a sweep has ended; the queue is asked first, because a command takes a hundred times as long."""
    return not any(queued(entry.job) for entry in JobLog(harness.store).entries()) and status(harness)["over"]


def test_disturbed_sweep_ends_with_the_numbers_of_a_local_one(base, folders):
    local, distant = (Harness(folder) for folder in folders)
    for each in (local, distant):
        shutil.copytree(base, each.store)

    submitted = distant(*CELLS, "cluster=slurm", *SMALL, *TWO_SCORES)
    killed = next(entry for entry in JobLog(distant.store).entries() if "finetune" in _kind(distant, entry.keys[0]))
    cancelled = next(
        entry
        for entry in JobLog(distant.store).entries()
        if "finetune" in _kind(distant, entry.keys[0]) and entry != killed
    )
    ask("scancel", cancelled.job)
    wait_until(lambda: is_running(killed.job) and processes(killed.job), 240, what="a fine-tuning")
    for process in processes(killed.job):
        process.kill()
    wait_until(lambda: is_over(distant), 240, what="the end of the sweep")
    states = status(distant)["stages"]

    assert "follow it with: harness status" in submitted.stdout
    assert states[killed.keys[0]]["cause"] == "killed"
    assert states[cancelled.keys[0]]["cause"] == "cancelled"
    assert {state["what"] for state in states.values()} == {"stored", "failed", "blocked"}

    assert distant("retry").returncode == 0
    wait_until(lambda: is_over(distant), 240, what="the end of the retried sweep")
    assert local(*CELLS, *TWO_SCORES).returncode == 0
    assert scores(distant) == scores(local)
    assert len(scores(local)) == 2
    assert "nothing to run" in distant(*CELLS, "cluster=slurm", *SMALL, *TWO_SCORES).stdout


def test_cancelled_sweep_leaves_nothing_in_the_queue(folders):
    harness = Harness(folders[1])
    harness(*CELLS, "cluster=slurm", *SMALL, *TWO_SCORES)
    (sweep,) = JobLog(harness.store).sweeps()

    told = harness("cancel", sweep)

    jobs = {entry.job for entry in JobLog(harness.store).entries()}
    assert f"{len(jobs)} jobs cancelled" in told.stdout
    wait_until(lambda: not any(queued(job) for job in jobs), 60, what="the end of all jobs")


def test_optunas_sweeper_waits_for_its_jobs_and_learns_from_them(base, folders):
    if not OPTUNA.exists():
        missing = "`make optuna-sweeper` installs what is missing"
        pytest.fail(missing) if os.environ.get("HARNESS_CI") else pytest.skip(missing)
    harness = WithOptuna(folders[1])
    shutil.copytree(base, harness.store)
    trials = (
        "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2", "defense=sft",
        "attack_ratio=p20", "finetune.budget.learning_rate=interval(0.0001,0.005)",
    )  # fmt: skip

    refused = harness(*trials, "cluster=slurm", *SMALL, *TWO_SCORES)
    run = harness(*trials, "cluster=slurm", "cluster.wait=true", "cluster.poll_seconds=1", *SMALL, *TWO_SCORES)

    assert refused.returncode == 2
    assert "set `cluster.wait=true`" in refused.stderr
    assert run.returncode == 0, run.stderr
    (found,) = (harness.store / "hydra").glob("*/optimization_results.yaml")
    stored = [
        float(cell["hs"])
        for sweep in JobLog(harness.store).sweeps()
        for cell in csv.DictReader(harness("report", sweep, "--format", "csv").stdout.splitlines())
    ]
    assert len(stored) == 3
    assert f"best_value: {min(stored)}" in found.read_text()


def _kind(harness, key: str) -> str:
    return json.loads((harness.store / "specs" / f"{key}.json").read_text())["_target_"].lower()
