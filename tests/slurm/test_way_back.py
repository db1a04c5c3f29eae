"""The way back on the real Slurm: jobs that it holds, submitters that sleep, die or have a wrong clock."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from faults import ask, failing_launches, queued, wait_until
from sites import SWEEP, Toys, ToySite, record
from submitter import toys as submitted_toys
from toys import Add, Number, heedful, runs

from harness.slurm.client import SlurmClient
from harness.slurm.job_log import JobLog
from harness.slurm.lock import SUBMITTING
from harness.sweep.cancel import cancel
from harness.sweep.status import status

BUSY = """#!/bin/bash
# A busy controller: it takes the second job, and its answer is long in coming.
[ -e {folder}/first ] || {{ touch {folder}/first; exec {sbatch} "$@"; }}
answer=$({sbatch} "$@") || exit
touch {folder}/taken
until [ -e {folder}/go ]; do sleep 0.1; done
echo "$answer"
"""


class PinnedSite(ToySite):
    """A site of one node."""

    def parameters(self, lines, pack):
        return {**super().parameters(lines, pack), "additional_parameters": {"nodelist": "n2"}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "a store"
    folder.mkdir()
    return folder


def test_job_that_slurm_holds_is_told_with_the_command_that_frees_it(root):
    base = Number(value=1.0)
    leaf = Add(parent=base, amount=2.0)
    toys = Toys(root, [leaf], PinnedSite())
    record(toys)

    with failing_launches("n2"):
        toys.submit()
        wait_until(lambda: toys.state(base).what == "held", what="a job that is held")
        found = status(toys.store, SWEEP)
        states = found.states

        assert states[base.key].reason == "launch failed requeued held"
        assert (states[leaf.key].what, states[leaf.key].held_by) == ("held", states[base.key].job)
        assert found.over
        assert toys.submit().calls == 0, "it has a job"
    _, _, command = states[base.key].message.partition("`")
    ask(*command.partition("`")[0].split())

    assert {state.what for state in toys.settled().values()} == {"stored"}


def test_submitter_that_slept_submits_nothing_twice_and_clocks_decide_nothing(root, monkeypatch):
    toys = submitted_toys(root)
    other = submitted_toys(root)
    other.sweep = "others-12345678"

    class Sleepy(SlurmClient):
        """Sleeps during its first call for so long that somebody else takes the turn."""

        def submit(self, request):
            ids = super().submit(request)
            if not list(JobLog(root).entries()):
                (root / "claims" / SUBMITTING).unlink()
                other.submit()
            return ids

    toys.submit(scheduler=Sleepy())

    names = [entry.job for entry in JobLog(root).entries()]
    assert len(names) == 4
    assert [key for key, count in _given(root).items() if count > 1] == []
    # The next submission is from a host whose clock is two hours behind.
    ask("scancel", *names)
    wait_until(lambda: not any(queued(name) for name in names), what="the end of the cancelled jobs")
    monkeypatch.setattr("harness.slurm.job_log.now", lambda: "2020-01-01T00:00:00.000+00:00")
    again = set(toys.submit().submitted.values())
    monkeypatch.undo()

    assert not again.intersection(names)
    assert {state.job for state in toys.states().values() if state.what != "stored"} <= again
    assert toys.submit().calls == 0
    assert {state.what for state in toys.settled().values()} == {"stored"}
    assert set(runs(root).values()) == {1}


def _given(root: Path) -> dict[str, int]:
    keys = [key for entry in JobLog(root).entries() for key in entry.keys]
    return {key: keys.count(key) for key in keys}


@pytest.fixture
def submitter(root, tmp_path):
    """A process that submits, and whose second call of sbatch waits for an answer until the file `go` is there."""
    busy = tmp_path / "busy"
    busy.mkdir()
    (busy / "sbatch").write_text(BUSY.format(folder=busy, sbatch=shutil.which("sbatch")))
    (busy / "sbatch").chmod(0o755)
    environment = {**os.environ, "PATH": f"{busy}{os.pathsep}{os.environ['PATH']}"}
    script = Path(__file__).with_name("submitter.py")
    process = subprocess.Popen(
        [sys.executable, str(script), str(root)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heedful,  # noqa: PLW1509
    )
    wait_until((busy / "taken").exists, what="a job that Slurm has taken")
    yield process, busy / "go"
    (busy / "go").touch()
    process.communicate(timeout=60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_submission_that_is_stopped_knows_all_its_jobs(root, submitter, number):
    process, go = submitter
    store = record(submitted_toys(root))

    os.killpg(process.pid, number)
    go.touch()
    _, said = process.communicate(timeout=60)

    assert process.returncode == (1 if number == signal.SIGINT else -number), said
    names = {entry.job for entry in JobLog(root).entries(SWEEP)}
    assert len(names) == 4
    assert not status(store, SWEEP).strays
    assert set(cancel(store, SWEEP).ended) >= {name for name in names if "_" in name}
    wait_until(lambda: not any(queued(name) for name in names), what="the end of all jobs")


def test_job_that_a_killed_submission_never_heard_of_is_counted_and_ended(root, submitter):
    process, _ = submitter
    toys = submitted_toys(root)
    store = record(toys)

    os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)
    (known,) = [entry.job for entry in JobLog(root).entries(SWEEP)]
    found = status(store, SWEEP)

    assert len(found.strays) == 3
    assert known not in found.strays
    ended = cancel(store, SWEEP).ended
    assert set(found.strays) <= set(ended) <= {*found.strays, known}
    wait_until(lambda: not any(queued(job) for job in ended), what="the end of all jobs")
