"""The verbs: messages and exit codes, in this process."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_scheduler import FakeScheduler
from recorded import record

from harness.slurm.job_log import JobLog


@pytest.fixture
def scheduler(monkeypatch) -> FakeScheduler:
    fake = FakeScheduler()
    monkeypatch.setattr("harness.slurm.settings.SlurmClient", lambda: fake)
    for verb in ("cancel", "gc", "status"):
        monkeypatch.setattr(f"harness.sweep.{verb}.SlurmClient", lambda: fake)
    return fake


@pytest.fixture
def sweep(tmp_path):
    return record(tmp_path / "store", "cluster=slurm")


def at(sweep) -> str:
    return f"--store={sweep.store.root}"


@pytest.mark.parametrize("verb", ["status", "retry", "cancel"])
def test_unknown_sweep_is_refused_and_the_latest_are_named(run, sweep, verb):
    code, _, error = run(verb, at(sweep), "nothing")

    assert code == 2
    assert "There is no sweep `nothing`" in error
    assert sweep.sweep in error


@pytest.mark.parametrize("arguments", [("status",), ("retry",), ("cancel", "x"), ("logs", "abc"), ("gc",)])
def test_store_that_does_not_exist_is_told_and_not_made(run, tmp_path, arguments):
    verb, *rest = arguments

    code, _, error = run(verb, f"--store={tmp_path / 'nowhere'}", *rest)

    assert code == 2
    assert "nowhere" in error
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("age", ["", "d", "30", "3w", "-1d", "1.5h", "²d"])
def test_age_that_is_none_is_refused(run, sweep, age):
    code, _, error = run("gc", at(sweep), f"--older-than={age}")

    assert code == 2
    assert "is not an age; expected 30d, 12h or 45m" in error


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("defense=booster", "a retry changes where stages run"),
        ("cluster.on_oom", "expected `cluster.x=y`"),
        ("cluster.nothing=1", "`cluster.nothing`: unknown setting"),
        ("cluster.requeues=many", "`cluster.requeues`"),
        ("cluster.setup=[a", "is not valid YAML"),
        ("cluster.setup=2020-13-01", "is not valid YAML"),
        ("cluster.requeues=" + "9" * 5000, "is not valid YAML"),
    ],
)
def test_wrong_change_is_refused(run, sweep, scheduler, change, words):
    code, _, error = run("retry", at(sweep), sweep.sweep, change)

    assert code == 2
    assert words in error
    assert not scheduler.requests


def test_logs_of_an_unknown_key_are_refused(run, sweep):
    code, _, error = run("logs", at(sweep), "zzzz")

    assert (code, "No key begins with `zzzz`" in error) == (2, True)


def test_logs_of_a_key_that_never_ran_are_refused(run, sweep):
    code, _, error = run("logs", at(sweep), sweep.plan.stages[0].key)

    assert (code, "it has never been attempted" in error) == (2, True)


def test_logs_of_a_key_name_their_files(run, sweep):
    stage = sweep.plan.stages[0]
    sweep.store.work(stage.key).mkdir()
    (sweep.store.work(stage.key) / "log.txt").write_text("what was logged\n")

    code, out, _ = run("logs", at(sweep), stage.key)

    assert (code, out) == (0, f"==> {sweep.store.work(stage.key) / 'log.txt'}\nwhat was logged\n")


def test_retry_submits_the_latest_sweep_with_a_change_alone(run, sweep, scheduler):
    code, out, _ = run("retry", at(sweep), "cluster.partition=big")

    assert code == 0
    assert "calls of sbatch" in out
    assert f"follow it with: harness status {sweep.sweep}" in out
    assert scheduler.requests[0].parameters["partition"] == "big"


def test_status_as_json_holds_every_stage(run, sweep, scheduler):
    run("retry", at(sweep))

    code, out, _ = run("status", at(sweep), "--json")

    found = json.loads(out)
    assert code == 0
    assert found["sweep"] == sweep.sweep
    assert found["stages"].keys() == {stage.key for stage in sweep.plan.stages}
    assert {state["what"] for state in found["stages"].values()} == {"pending"}
    assert found["counts"]["base"]["pending"] == 1


def test_status_names_cause_node_and_log_of_a_failed_stage(run, sweep, scheduler):
    run("retry", at(sweep))
    base = sweep.stages("base")[0]
    job = JobLog(sweep.store.root).latest()[base.key].job
    scheduler.end(job, "NODE_FAIL", nodes="n7")

    code, out, _ = run("status", at(sweep))

    assert code == 0
    assert f"base {base.key} failed: node failure (job {job}, n7)" in out
    assert f"{job}_0_log.err" in out.replace("\n", "")


def test_status_when_slurm_does_not_answer_is_that_of_the_store(run, sweep, scheduler):
    run("retry", at(sweep))
    scheduler.down = True

    code, out, _ = run("status", at(sweep), "--json")

    assert code == 0
    assert {state["message"] for state in json.loads(out)["stages"].values()} == {"Slurm does not respond"}


def test_cancel_says_how_many_jobs_ended(run, sweep, scheduler):
    run("retry", at(sweep))
    jobs = len(scheduler.jobs)

    code, out, _ = run("cancel", at(sweep), sweep.sweep)

    assert (code, out) == (0, f"{sweep.sweep}: {jobs} jobs cancelled, 0 kept because other sweeps need them\n")


def test_cancel_wants_a_name(run, sweep):
    assert run("cancel", at(sweep))[0] == 2


def test_gc_says_what_would_go_and_then_what_went(run, sweep, scheduler):
    folder = sweep.store.root / "work" / ("f" * 16)
    folder.mkdir()
    os.utime(folder, (time.time() - 60 * 86400,) * 2)

    assert run("gc", at(sweep), "--dry-run")[1].startswith(f"would remove work {folder}")
    assert folder.exists()
    code, out, _ = run("gc", at(sweep))

    assert (code, out.splitlines()[-1]) == (0, "1 folder, 0 bytes freed")
    assert not folder.exists()


BLOCKED = ("torch", "transformers", "peft", "pandas", "wandb", "plotly", "matplotlib", "scipy")


@pytest.fixture
def without_torch(tmp_path):
    """Run the command where the heavy packages cannot be imported, and `sbatch` leaves a trace if it is called."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(f"import sys\nfor name in {BLOCKED!r}:\n    sys.modules[name] = None\n")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    commands = tmp_path / "commands"
    commands.mkdir()
    for name in ("sbatch", "srun", "squeue", "scancel"):
        (commands / name).write_text(f'#!/bin/sh\ntouch "{tmp_path}/called-$(basename $0)"\n')
        (commands / name).chmod(0o755)

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        inherited = {name: text for name, text in os.environ.items() if not name.startswith("HARNESS_")}
        path = os.pathsep.join([str(site), *filter(None, sys.path)])
        return subprocess.run(
            [sys.executable, "-m", "harness", *arguments],
            cwd=tmp_path,
            env=inherited
            | {
                "PYTHONPATH": path,
                "PATH": f"{commands}:{inherited['PATH']}",
                "COLUMNS": "200",
                "TMPDIR": str(temporary),
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.mark.slow
def test_plan_needs_no_torch(without_torch):
    done = without_torch("plan", "-m", "defense=sft,booster", "cluster=slurm")

    assert done.returncode == 0, done.stderr
    assert "no prediction" in done.stdout


@pytest.mark.slow
def test_dry_run_needs_no_torch_calls_no_sbatch_and_leaves_the_store_alone(without_torch, tmp_path):
    done = without_torch("-m", "defense=sft,booster", "cluster=slurm", "cluster.dry_run=true")

    assert done.returncode == 0, done.stderr
    assert "dry run, nothing was submitted" in done.stdout
    scripts = Path(done.stdout.partition("scripts: ")[2].splitlines()[0])
    assert scripts.parent == tmp_path / "temporary"
    assert list(scripts.glob("[0-9]*.sh"))
    assert not list(tmp_path.glob("called-*"))
    assert not (tmp_path / "store").exists()


def test_single_cell_takes_slurm_too(without_torch):
    done = without_torch("cluster=slurm", "cluster.dry_run=true")

    assert done.returncode == 0, done.stderr
    assert "dry run, nothing was submitted" in done.stdout


@pytest.mark.slow
def test_refusal_of_sbatch_is_told_without_a_traceback(without_torch, tmp_path):
    (tmp_path / "commands" / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid account' >&2\nexit 1\n")

    done = without_torch("cluster=slurm")

    assert done.returncode == 2
    assert "invalid account" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("finetune.rows=99999", "a run would stop: `finetune.rows`: 89999 benign rows requested"),
        ("store=a_file", "a run would stop: The store"),
        ("evaluation.decoding.engine=vllm", "a run would stop: `cluster.vllm_python`"),
    ],
)
def test_plan_tells_what_a_run_would_be_refused_for(run, tmp_path, monkeypatch, override, words):
    (tmp_path / "a_file").write_text("no store")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HARNESS_VLLM_PYTHON", raising=False)

    code, out, error = run("plan", override)
    _, as_json, _ = run("plan", "--json", override)

    assert (code, error) == (0, "")
    assert words in out
    assert json.loads(as_json)["cells"] == 1


def test_folder_of_a_report_that_cannot_be_written_is_not_said_to_be_the_store(run, sweep, tmp_path):
    (tmp_path / "a_file").write_text("no folder")

    code, _, error = run("report", "--store", str(sweep.store.root), "--out", str(tmp_path / "a_file" / "x"))

    assert code == 2
    assert "`--out`" in error
    assert "Not a directory" in error
    assert "store" not in error.replace(str(tmp_path), "")


def test_figures_of_an_earlier_report_are_told(run, sweep, tmp_path):
    (tmp_path / "out" / "figures").mkdir(parents=True)
    (tmp_path / "out" / "figures" / "surface-old.pdf").touch()

    code, _, error = run("report", "--store", str(sweep.store.root), "--out", str(tmp_path / "out"))

    told = f"note: {tmp_path}/out/figures also has figures that are not of this report: surface-old.pdf\n"
    assert (code, error) == (0, told)


def test_verb_behind_flags_is_told_to_come_first(run):
    code, _, error = run("--config-dir", ".", "plan", "seed=1")

    assert (code, error) == (2, "harness: `plan` is a verb; expected it first, as in `harness plan -m ...`.\n")
