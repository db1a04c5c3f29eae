"""Everything that can go wrong with jobs, done on purpose on the real cluster.

Each time: what does not depend on the fault is finished, every artifact is intact, the state names the cause, a second
submission finishes the sweep, and the numbers are those of an undisturbed local run.
"""

import subprocess
import threading
from pathlib import Path

import pytest
from faults import (
    ask,
    is_running,
    kill_slurmd,
    preempt,
    processes,
    queued,
    restart_slurmctld,
    restarts,
    start_slurmd,
    switch_off,
    wait_until,
)
from sites import Toys, ToySite, record
from toys import Add, Count, Mix, Number, runs

from harness.errors import Interrupted
from harness.slurm.causes import Cause
from harness.slurm.client import SlurmClient
from harness.slurm.job_log import JobLog
from harness.sweep.cancel import cancel
from harness.sweep.gc import collect


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "a store"
    folder.mkdir()
    return folder


class Fork(Toys):
    """number -> add 1 -> add 2, where the fault strikes, and number -> add 10 -> add 20, which it must not touch."""

    def __init__(self, root: Path, site: ToySite | None = None) -> None:
        self.base = Number(value=100.0)
        self.struck = Add(parent=self.base, amount=1.0)
        self.child = Add(parent=self.struck, amount=2.0)
        self.other = Add(parent=Add(parent=self.base, amount=10.0), amount=20.0)
        super().__init__(root, [self.child, self.other], site or ToySite())

    def hold(self) -> None:
        """Let the struck stage wait when it runs."""
        (self.root / "trouble-1").write_text("hold")

    def holding(self) -> str:
        """Wait until it does; return its job."""
        wait_until((self.root / "holding-1").exists, what="the held stage")
        return self.job(self.struck)

    def alone(self) -> str:
        """Wait until nothing but the held stage is left, so that no other shares its node; return the node."""
        wait_until(lambda: self.store.has(self.other), what="the other branch")
        return self.state(self.struck).node

    def release(self) -> None:
        (self.root / "trouble-1").unlink(missing_ok=True)
        (self.root / "holding-1").unlink(missing_ok=True)

    def finish(self, tmp_path: Path) -> None:
        """Submit again, and compare with a run that nothing disturbed."""
        self.release()
        self.submit()
        assert {state.what for state in self.settled().values()} == {"stored"}
        self.verify()
        assert self.numbers() == self.undisturbed(tmp_path / "undisturbed")


def broken(fork: Fork, cause: str) -> None:
    """The struck stage failed for this cause, its child is blocked, the rest is stored."""
    states = fork.settled()
    assert (states[fork.struck.key].what, states[fork.struck.key].cause) == ("failed", cause)
    assert states[fork.child.key].what == "blocked"
    assert states[fork.other.key].what == "stored"
    fork.verify()


def test_sweep_that_nothing_disturbs_ends_with_the_local_numbers(root, tmp_path):
    fork = Fork(root)

    fork.finish(tmp_path)

    assert runs(root) == runs(tmp_path / "undisturbed")


def test_worker_that_is_killed_job_that_is_cancelled_and_stage_that_raises_are_told_and_run_again(root, tmp_path):
    base = Number(value=100.0)
    killed, cancelled, raising, other = struck = [Add(parent=base, amount=amount) for amount in (1.0, 3.0, 5.0, 10.0)]
    children = [Add(parent=parent, amount=2.0) for parent in struck]
    toys = Toys(root, children)
    for amount, trouble in ((1.0, "hold"), (3.0, "hold"), (5.0, "bug")):
        (root / f"trouble-{amount:g}").write_text(trouble)
    toys.submit()
    wait_until(lambda: (root / "holding-1").exists() and (root / "holding-3").exists(), what="the held stages")

    for process in processes(toys.job(killed)):
        process.kill()
    ask("scancel", toys.job(cancelled))

    states = toys.settled()
    assert {stage: (states[stage.key].what, states[stage.key].cause) for stage in struck} == {
        killed: ("failed", Cause.KILLED),
        cancelled: ("failed", Cause.CANCELLED),
        raising: ("failed", Cause.CODE_ERROR),
        other: ("stored", ""),
    }
    assert [states[child.key].what for child in children] == ["blocked", "blocked", "blocked", "stored"]
    assert "RuntimeError: a bug" in states[raising.key].message
    toys.verify()
    for path in root.glob("trouble-*"):
        path.unlink()
    toys.submit()
    assert {state.what for state in toys.settled().values()} == {"stored"}
    toys.verify()
    assert toys.numbers() == toys.undisturbed(tmp_path / "undisturbed")


def test_node_that_dies_gives_its_job_to_another(root, tmp_path):
    fork = Fork(root)
    fork.hold()
    fork.submit()
    job = fork.holding()
    node = fork.alone()

    switch_off(node)
    try:
        fork.release()
        wait_until(lambda: restarts(job), 90, what="the way back into the queue")
        states = fork.settled()

        assert {state.what for state in states.values()} == {"stored"}
        fork.verify()
        assert fork.numbers() == fork.undisturbed(tmp_path / "undisturbed")
    finally:
        start_slurmd(node)


def test_node_that_dies_under_a_job_that_may_not_start_again_is_left_out_by_the_next(root, tmp_path):
    fork = Fork(root, ToySite(requeues=0))
    fork.hold()
    fork.submit()
    fork.holding()
    node = fork.alone()

    switch_off(node)
    try:
        broken(fork, Cause.NODE_FAILURE)
        assert fork.state(fork.struck).node == node
    finally:
        start_slurmd(node)
    fork.finish(tmp_path)
    assert JobLog(root).latest()[fork.struck.key].excluded == (node,)


def slow_count(root: Path, site: ToySite) -> tuple[Toys, Count]:
    (root / "slow").touch()
    count = Count(parent=Number(value=1.0), steps=500)
    return Toys(root, [Add(parent=count, amount=3.0)], site), count


def resumed(toys: Toys, count: Count, tmp_path: Path) -> None:
    """It went on where it was, did each step once, and ends with the undisturbed number."""
    (toys.root / "slow").unlink()
    assert {state.what for state in toys.settled().values()} == {"stored"}
    done = runs(toys.root)
    assert {done[f"count:step:{step}"] for step in range(count.steps)} == {1}
    assert sum(times for line, times in done.items() if line.startswith("count:from")) > 1
    toys.verify()
    assert toys.numbers() == toys.undisturbed(tmp_path / "undisturbed")


def counting(toys: Toys, count: Count) -> str:
    wait_until(lambda: runs(toys.root)["count:step:2"], what="the third step")
    return toys.job(count)


def test_preempted_job_goes_on_where_it_was(root, tmp_path):
    toys, count = slow_count(root, ToySite(grace_seconds=20))
    toys.submit()
    job = counting(toys, count)

    urgent = preempt(toys.state(count).node, seconds=5)
    try:
        wait_until(lambda: restarts(job), 60, what="the way back into the queue")
    finally:
        ask("scancel", urgent)

    resumed(toys, count, tmp_path)
    assert toys.job(count) == job, "requeued under its own id, so that edges survive"


def test_job_that_is_warned_of_its_time_limit_goes_on_where_it_was(root, tmp_path):
    toys, count = slow_count(root, ToySite(minutes=1, warn_seconds=50))
    toys.submit()
    job = counting(toys, count)

    wait_until(lambda: restarts(job), 90, what="the way back into the queue")

    resumed(toys, count, tmp_path)


def test_job_that_starts_again_too_often_gives_up(root, tmp_path):
    fork = Fork(root, ToySite(requeues=1))
    fork.hold()
    fork.submit()
    job = fork.holding()

    for times in (1, 2):
        wait_until(lambda: is_running(job), 60)
        ask("scontrol", "requeue", job)
        wait_until(lambda times=times: restarts(job) == times, 60)

    broken(fork, Cause.REQUEUES)
    fork.finish(tmp_path)


def test_controller_that_restarts_loses_nothing(root, tmp_path):
    fork = Fork(root)
    fork.hold()
    fork.submit()
    fork.holding()

    restart_slurmctld()
    fork.release()

    assert {state.what for state in fork.settled().values()} == {"stored"}
    assert fork.numbers() == fork.undisturbed(tmp_path / "undisturbed")


def test_disk_that_is_full_harms_nothing_stored(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=True)
    try:
        fork = Fork(disk / "store", ToySite(requeues=0))
        fork.root.mkdir()
        fork.hold()
        fork.submit()
        job = fork.holding()
        fork.alone()
        store = record(fork)
        (fork.root / "work" / "0123456789abcdef").mkdir()
        subprocess.run(
            ["dd", "if=/dev/zero", f"of={disk / 'ballast'}", "status=none"], check=False, stderr=subprocess.DEVNULL
        )

        (fork.root / "trouble-1").unlink()
        fork.settled()
        fork.verify()
        state = fork.state(fork.struck)
        assert (state.what, state.job) == ("failed", job)
        assert state.cause in (Cause.UNWRITABLE, "StoreError"), "the disk, not the code"
        cancel(store, fork.sweep)
        wait_until(lambda: not any(queued(entry.job) for entry in JobLog(fork.root).entries()), what="the end of all")
        assert [one.path.name for one in collect(store, seconds=0, dry_run=False)][-1:] == ["0123456789abcdef"]

        (disk / "ballast").unlink()
        JobLog(fork.root).cancel(fork.sweep, undo=True)
        fork.finish(tmp_path)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_two_submissions_at_once_run_each_stage_once(root, tmp_path):
    mine, other = Fork(root), Fork(root)
    other.sweep = "others-12345678"
    extra = Add(parent=other.child, amount=7.0)
    other.leaves = [*other.leaves, extra]
    submissions = [threading.Thread(target=toys.submit) for toys in (mine, other)]

    for submission in submissions:
        submission.start()
    for submission in submissions:
        submission.join()

    assert {state.what for state in other.settled().values()} == {"stored"}
    assert runs(root) == dict.fromkeys(["number:100.0", "add:1", "add:2", "add:10", "add:20", "add:7"], 1)
    assert mine.numbers() == mine.undisturbed(tmp_path / "undisturbed")


def test_sweep_that_is_cancelled_while_it_is_submitted_leaves_no_job(root, tmp_path):
    base = Number(value=5.0)
    toys = Toys(root, [Add(parent=Add(parent=base, amount=float(step)), amount=100.0 + step) for step in range(4)])

    class Cancelling(SlurmClient):
        def submit(self, request):
            ids = super().submit(request)
            JobLog(root).cancel(toys.sweep)
            return ids

    with pytest.raises(Interrupted, match="cancelled after 1 calls of sbatch"):
        toys.submit(scheduler=Cancelling())

    ask("scancel", *{entry.job for entry in JobLog(root).entries(toys.sweep)})
    wait_until(lambda: not any(queued(entry.job) for entry in JobLog(root).entries(toys.sweep)))
    JobLog(root).cancel(toys.sweep, undo=True)
    toys.submit()
    assert {state.what for state in toys.settled(240).values()} == {"stored"}
    assert toys.numbers() == toys.undisturbed(tmp_path / "undisturbed")


def test_artifact_that_was_altered_fails_its_readers_and_nothing_else(root, tmp_path):
    fork = Fork(root)
    Toys(root, [fork.struck]).submit()
    Toys(root, [fork.struck]).settled()
    (fork.store.folder(fork.struck) / "sub folder" / "number.txt").write_text("7")

    fork.submit()
    states = fork.settled()

    assert (states[fork.child.key].what, states[fork.child.key].cause) == ("failed", "DamagedArtifact")
    assert states[fork.other.key].what == "stored"
    fork.store.set_aside(fork.struck)
    fork.finish(tmp_path)


def test_slurmd_that_loses_its_network_never_lets_a_stage_run_twice_at_once(root, tmp_path):
    fork = Fork(root)
    fork.hold()
    fork.submit()
    job = fork.holding()
    node = fork.alone()

    kill_slurmd(node)
    try:
        wait_until(lambda: restarts(job) and is_running(job), 120, what="the second run")
        fork.release()
        states = fork.settled()
    finally:
        start_slurmd(node)

    assert {state.what for state in states.values()} == {"stored"}
    assert runs(root)["add:1"] == 1, "the first run went on, unseen, and the second waited for it"
    assert fork.numbers() == fork.undisturbed(tmp_path / "undisturbed")


def test_stages_that_need_two_parents_wait_for_both(root, tmp_path):
    left, right = Number(value=1.0), Number(value=2.0)
    toys = Toys(root, [Add(parent=left, amount=1.0), Mix(left=left, right=Add(parent=right, amount=5.0))])

    toys.submit()

    assert {state.what for state in toys.settled().values()} == {"stored"}


def test_cap_on_jobs_is_kept_by_jobs_that_submit_the_rest(root, tmp_path):
    toys = Toys(root, [Add(parent=Number(value=float(one)), amount=1.0) for one in range(4)], ToySite(job_cap=4))

    outcome = toys.submit()
    seen = []

    def over() -> bool:
        seen.append(sum(1 for entry in JobLog(root).entries() if queued(entry.job)))
        return all(state.what == "stored" for state in toys.states().values())

    wait_until(over, 240, what="the end of the sweep")

    assert outcome.left > 0
    assert max(seen) <= 4
    assert toys.numbers() == toys.undisturbed(tmp_path / "undisturbed")
    assert runs(root) == runs(tmp_path / "undisturbed")


def test_packed_stage_whose_parent_fails_takes_no_neighbour_along(root, tmp_path):
    heads = [Add(parent=Number(value=0.0), amount=float(one)) for one in (1, 2, 3)]
    leaves = [Mix(left=head, right=Number(value=9.0)) for head in heads]
    toys = Toys(root, leaves, ToySite(pack={"mix": 3}))
    (root / "trouble-2").write_text("bug")

    toys.submit()
    states = toys.settled()

    assert [states[leaf.key].what for leaf in leaves] == ["stored", "failed", "stored"]
    assert states[leaves[1].key].cause == Cause.MISSING_PARENT
    (root / "trouble-2").unlink()
    toys.submit()
    assert {state.what for state in toys.settled().values()} == {"stored"}
    toys.verify()
