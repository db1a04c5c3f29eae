"""The scheduler: what the commands of Slurm are asked, and a rehearsal that asks none of them."""

import os
import re
import tempfile
from pathlib import Path

import pytest
import submitit
from fake_scheduler import FakeScheduler, FakeSite, prepared, submit
from toys import Add, Mix, Number, Silent, chain

from harness.engine.plan import Plan
from harness.errors import SchedulerError
from harness.slurm.client import Ended, Queued, Request, Scheduler, SlurmClient
from harness.slurm.dry_run import DryRun
from harness.slurm.executor import SlurmExecutor
from harness.slurm.job_log import JobLog


@pytest.fixture(autouse=True)
def _temporary_folder_with_spaces(tmp_path, monkeypatch):
    """Where rehearsals write."""
    folder = tmp_path / "for a while"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Commands that stand in for Slurm's, first on PATH; each notes its arguments."""
    folder = tmp_path / "commands"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")

    def command(name: str, script: str) -> Path:
        path, trace = folder / name, folder / f"{name}.trace"
        path.write_text(f'#!/bin/sh\necho "$@" >> "{trace}"\n{script}\n')
        path.chmod(0o755)
        return trace

    return command


def rehearsed(store, leaves, **settings):
    executor = SlurmExecutor(
        site=FakeSite(**settings), scheduler=DryRun(), sweep="toys-1", tracker=Silent(), prepare=prepared
    )
    return executor.run(Plan.of(leaves), store)


def scripts(outcome):
    return [path.read_text() for path in sorted(outcome.scripts.glob("[0-9]*.sh"))]


def test_fakes_and_slurm_are_schedulers():
    schedulers: list[Scheduler] = [FakeScheduler(), SlurmClient(), DryRun()]

    assert [one.dry_run for one in schedulers] == [False, False, True]


def test_rehearsal_writes_scripts_with_edges_and_calls_nothing(store, root, commands):
    traces = [commands(name, "echo Submitted batch job 77") for name in ("sbatch", "srun", "squeue", "sacct")]
    adds = [Add(parent=Number(value=0.0), amount=amount) for amount in (1, 2)]

    outcome = rehearsed(store, [Mix(left=adds[0], right=adds[1])])

    assert not [trace for trace in traces if trace.exists()]
    assert set(outcome.submitted.values()) == {"1", "2_0", "2_1", "3"}
    number, array, mix = scripts(outcome)
    assert "--dependency" not in number
    assert "#SBATCH --dependency=afterok:1\n" in array
    assert "#SBATCH --array=0-1" in array
    assert "#SBATCH --dependency=afterok:2_0:2_1\n" in mix
    for script in (array, mix):
        assert "#SBATCH --kill-on-invalid-dep=yes" in script
        assert "#SBATCH --requeue" in script
    assert re.search(r"#SBATCH --job-name=.?add toys-1", array)


def test_rehearsal_writes_the_scripts_that_a_cap_would_leave_for_later(store):
    adds = [Add(parent=Number(value=value), amount=1) for value in range(6)]

    outcome = rehearsed(store, adds, job_cap=3)

    assert len(outcome.submitted) == 12
    assert outcome.left == 0


def test_job_gives_up_by_itself_before_submitit_would(store, monkeypatch):
    asked = []

    class Executor(submitit.SlurmExecutor):
        def __init__(self, *args, max_num_timeout, **options):
            asked.append(max_num_timeout)
            super().__init__(*args, max_num_timeout=max_num_timeout, **options)

    monkeypatch.setattr(submitit, "SlurmExecutor", Executor)

    rehearsed(store, [chain(1)], requeues=3)

    assert asked == [4]


def test_rehearsal_leaves_no_trace_in_ledger_or_queue(store, root):
    outcome = rehearsed(store, [chain(2)])

    assert not list(JobLog(root).entries())
    assert not JobLog(root).sweeps()
    assert outcome.scripts.name.startswith("harness-dry-run-")
    assert not list(root.rglob("*"))
    scheduler = FakeScheduler()
    assert len(submit(store, scheduler, [chain(2)]).submitted) == 2


def test_edge_to_a_packed_job_is_of_the_weaker_kind(store):
    numbers = [Number(value=value) for value in (0.0, 1.0)]

    outcome = rehearsed(store, [Add(parent=numbers[0], amount=1), numbers[1]], pack={"number": 2})

    assert "#SBATCH --dependency=afterany:1\n" in scripts(outcome)[-1]


def test_rehearsal_gives_path_back(store, monkeypatch):
    monkeypatch.setenv("PATH", "/bin")

    rehearsed(store, [chain(1)])

    assert os.environ["PATH"] == "/bin"


def test_queue_is_asked_once_for_all_users(commands):
    lines = "1|PENDING|Dependency||7|/a store|x/1.sh\\n2_0|RUNNING|None|n1|9|\\nthe rest of a strange path\\n"
    trace = commands("squeue", f"printf '{lines}'")

    queue = SlurmClient().queue({"me", "you"})

    assert queue == {
        "1": Queued("PENDING", "Dependency", "", 7, "/a store|x/1.sh"),
        "2_0": Queued("RUNNING", "None", "n1", 9, ""),
    }
    (line,) = trace.read_text().splitlines()
    assert "--array" in line
    assert "--user me,you" in line


def test_history_is_that_of_the_jobs_asked_for(commands):
    text = "1|COMPLETED|0:0|n1\\n2_0|CANCELLED by 1000|0:15|n2\\n2_1|FAILED|137:0|n2\\n3|TIMEOUT|0:0|n3"
    trace = commands("sacct", f"printf '{text}\\n'")

    found = SlurmClient().history(["1", "2_0", "2_1"])

    assert found == {
        "1": Ended("COMPLETED", 0, 0, "n1"),
        "2_0": Ended("CANCELLED", 0, 15, "n2"),
        "2_1": Ended("FAILED", 137, 0, "n2"),
    }
    assert "--jobs 1,2" in trace.read_text()


def test_elements_that_never_began_are_told_one_by_one(commands):
    commands("sacct", "echo '7_[0,2-3]|CANCELLED by 0|0:0|None assigned'")

    assert set(SlurmClient().history(["7_0", "7_1", "7_2", "7_3"])) == {"7_0", "7_2", "7_3"}


def test_job_that_the_accounting_calls_running_has_not_ended(commands):
    commands("sacct", "printf '1|RUNNING|0:0|n1\n2|COMPLETED|0:0|n1\n'")

    assert set(SlurmClient().history(["1", "2"])) == {"2"}


def test_site_without_accounting_remembers_nothing(commands):
    commands("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")

    assert SlurmClient().history(["1"]) is None


def test_nobody_is_told_to_end_no_jobs(commands):
    trace = commands("scancel", "")

    SlurmClient().cancel([])

    assert not trace.exists()


def test_queue_that_fails_says_so_in_slurms_words(commands):
    commands("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")

    with pytest.raises(SchedulerError, match=r"`squeue` does not respond.*Unable to contact slurm controller"):
        SlurmClient().queue({"me"})


def test_questions_do_not_inherit_the_users_own_filters(commands, monkeypatch):
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    commands("squeue", 'echo "7|PENDING|${SQUEUE_STATES:-none} ${SLURM_BITSTR_LEN}||1|"')

    assert SlurmClient().queue({"me"})["7"].reason == "none 0"


def test_list_of_elements_that_was_cut_short_says_nothing(commands):
    commands("sacct", "echo '7_[1,3,5,...]|CANCELLED|0:0|'; echo '8_1|TIMEOUT|0:0|n1'")

    assert set(SlurmClient().history({"7_1", "8_1"})) == {"8_1"}


def test_queue_that_hangs_is_given_up(commands, monkeypatch):
    monkeypatch.setattr("harness.slurm.client.TIMEOUT_SECONDS", 0.2)
    commands("squeue", "exec sleep 20")

    with pytest.raises(SchedulerError, match="does not respond"):
        SlurmClient().queue({"me"})


def test_refusal_of_sbatch_is_told_once_in_its_words(tmp_path, commands, capfd):
    commands("sbatch", "echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1")
    commands("srun", "")

    with pytest.raises(SchedulerError, match="invalid partition specified: gpu"):
        SlurmClient().submit(Request(name="add toys", folder=tmp_path / "jobs", jobs=[print]))

    assert not capfd.readouterr().err


def test_machine_without_slurm_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(SchedulerError, match=r"no `sbatch` on this machine.*dry_run"):
        SlurmClient().submit(Request(name="add toys", folder=tmp_path, jobs=[print]))
    with pytest.raises(SchedulerError, match="no `squeue` on this machine"):
        SlurmClient().queue({"me"})


def test_folder_with_spaces_reaches_the_script_quoted(store):
    outcome = rehearsed(store, [chain(1)])

    (script,) = scripts(outcome)
    assert " " in str(outcome.scripts)
    assert re.search(r"#SBATCH --output=['\"]?.*for a while", script)


@pytest.mark.parametrize(
    ("state", "reason", "priority", "held"),
    [
        ("PENDING", "launch failed requeued held", 0, True),
        ("PENDING", "launch failed requeued held", None, True),
        ("PENDING", "job requeued in held state", 0, True),
        ("PENDING", "JobHeldUser", 0, True),
        ("PENDING", "JobHeldAdmin", 0, True),
        ("PENDING", "JobHoldMaxRequeue", 0, True),
        ("PENDING", "None", 0, True),
        ("REQUEUE_HOLD", "None", 5, True),
        ("SPECIAL_EXIT", "None", 5, True),
        ("PENDING", "Priority", 5, False),
        ("PENDING", "Dependency", 5, False),
        ("PENDING", "BeginTime", None, False),
        ("RUNNING", "None", 0, False),
        ("COMPLETING", "JobHeldUser", 0, False),
    ],
)
def test_job_that_waits_for_somebody_to_release_it_is_held(state, reason, priority, held):
    assert Queued(state, reason, "", priority).held == held
