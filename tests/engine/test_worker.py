"""The worker: what a job does on its node, and what Slurm's warning leads to."""

import os
import pickle
import signal
import threading
from functools import partial

import pytest
from fake_scheduler import prepared, within_job
from toys import ALLOW, Add, Number, Silent, Tune, chain, run, runs, wait_for

from harness.engine.claim import Claims
from harness.engine.plan import Plan
from harness.engine.provenance import source_digest
from harness.engine.stage import lineage
from harness.slurm import worker
from harness.slurm.client import Requeueable
from harness.slurm.worker import Job, JobFailed, PreemptionHandler, TimeUp, job_id


def job_of(store, *lines, **settings):
    store.prepare()
    store.register(Plan.of(stage for line in lines for stage in line).stages)
    return Job(
        **{
            "root": store.root,
            "allow": ALLOW,
            "lines": tuple(tuple(stage.key for stage in line) for line in lines),
            "tracker": Silent(),
            "prepare": partial(prepared, 1),
            "code": source_digest(ALLOW),
            "poll_seconds": 0.02,
            **settings,
        }
    )


def test_lines_run_in_order_after_a_pickle(store, root):
    leaf, other = chain(3), Number(value=7.0)
    job = pickle.loads(pickle.dumps(Requeueable(job_of(store, lineage((leaf,)), [other]))))

    with within_job("5_1"):
        job()

    assert store.has(leaf)
    assert store.has(other)
    assert runs(root).total() == 4
    assert store.attempts(leaf.key)[-1]["job"] == "5_1"
    assert store.attempts(leaf.key)[-1]["node"] == "node1"


def test_lines_of_a_packed_job_load_their_base_once(store):
    number = Number(value=0.0)
    tuned = [Tune(parent=number, amount=amount) for amount in (1, 2, 3)]
    job = job_of(store, [number, tuned[0]], [tuned[1]], [tuned[2]])

    with within_job("5_1"):
        job()

    assert [store.manifest(stage.key).facts["loaded"] for stage in tuned] == [True, False, False]


def test_failure_stops_what_needs_it_and_nothing_else(store, root):
    number = Number(value=0.0)
    bad, good = Add(parent=number, amount=1), Add(parent=number, amount=2)
    child = Add(parent=bad, amount=3)
    other = Number(value=9.0)
    job = job_of(store, [number, bad, child, good], [other])
    (root / "trouble-1").write_text("bug")

    with within_job("5"), pytest.raises(JobFailed, match=bad.key):
        job()

    assert [store.has(stage) for stage in (number, bad, child, good, other)] == [True, False, False, True, True]
    assert not store.attempts(child.key)


@pytest.mark.parametrize("writable", [True, False])
def test_job_that_cannot_write_why_its_stage_failed_says_so_by_its_exit_code(store, root, capsys, writable):
    leaf = Add(parent=Number(value=0.0), amount=1)
    job = job_of(store, lineage((leaf,)))
    (root / "trouble-1").write_text("full")
    if not writable:
        (root / "attempts").rmdir()
        (root / "attempts").write_text("no folder")

    with within_job("5"), pytest.raises(JobFailed if writable else SystemExit) as ended:
        job()

    if not writable:
        assert ended.value.code == os.EX_CANTCREAT
        assert f"{leaf.key}: The disk or quota is full" in capsys.readouterr().err


def test_job_whose_attempts_cannot_be_read_says_so_by_its_exit_code(store, root):
    leaf = Add(parent=Number(value=0.0), amount=1)
    job = job_of(store, lineage((leaf,)))
    (root / "trouble-1").write_text("bug")
    (root / "attempts" / f"{leaf.key}.jsonl").mkdir()

    with within_job("5"), pytest.raises(SystemExit) as ended:
        job()

    assert ended.value.code == os.EX_CANTCREAT


def test_missing_parent_is_recorded(store):
    leaf = chain(2)

    with within_job("5"), pytest.raises(JobFailed, match="not in the store"):
        job_of(store, [leaf])()

    assert store.attempts(leaf.key)[-1]["cause"] == "missing parent"


def test_stage_that_another_process_works_on_is_waited_for(store):
    leaf = chain(1)
    job = job_of(store, [leaf])
    claim = Claims(store.claims).take(leaf.key)
    assert claim is not None
    waiting = threading.Timer(0.2, claim.release)
    waiting.start()

    with within_job("5"):
        job()

    assert store.has(leaf)
    waiting.join()


def test_stage_that_another_process_finished_is_not_run_again(store, root):
    leaf = chain(1)
    job = job_of(store, [leaf])
    run(root, [leaf])

    with within_job("5"):
        job()

    assert runs(root).total() == 1


def test_other_code_is_refused_and_said_where_the_job_stopped(store, root):
    leaf = chain(2)
    run(root, [leaf.parent])
    job = job_of(store, lineage((leaf,)), code="other")

    with within_job("5"), pytest.raises(JobFailed, match="allow_drift"):
        job()

    assert not store.has(leaf)
    assert store.attempts(leaf.key)[-1]["cause"] == "code drift"
    assert store.attempts(leaf.parent.key)[-1]["outcome"] == "executed"


def test_other_code_runs_where_that_is_allowed(store):
    leaf = chain(1)

    with within_job("5"):
        job_of(store, [leaf], code="other", allow_drift=True)()

    assert store.has(leaf)


@pytest.mark.parametrize(("restarts", "runs_again"), [("3", True), ("4", False)])
def test_job_that_was_started_again_too_often_gives_up(store, restarts, runs_again):
    leaf = chain(1)
    job = job_of(store, [leaf], requeues=3)

    with within_job("5", SLURM_RESTART_COUNT=restarts):
        if runs_again:
            job()
        else:
            with pytest.raises(JobFailed, match="requeued 4 times; the limit is 3"):
                job()

    assert store.has(leaf) == runs_again
    assert store.attempts(leaf.key)[-1].get("cause") == (None if runs_again else "requeue limit")


def test_umask_of_the_submission_is_that_of_the_artifacts(store):
    leaf = chain(1)

    with within_job("5"):
        job_of(store, [leaf], umask=0o002)()

    assert store.folder(leaf).stat().st_mode & 0o777 == 0o775
    assert (store.folder(leaf) / "manifest.json").stat().st_mode & 0o777 == 0o664


def test_warning_between_stages_puts_the_job_back(store, root):
    leaf = chain(3)
    job = job_of(store, lineage((leaf,)), prepare=_warn)
    received = []

    def requeue(number, frame):
        received.append(number)
        raise SystemExit

    with within_job("5"):
        signal.signal(signal.SIGUSR2, requeue)
        with pytest.raises(SystemExit):
            job()

    assert received == [signal.SIGUSR2]
    assert runs(root).total() == 1


@pytest.mark.parametrize("restarts", ["0", "3"])
def test_warning_during_the_last_stage_does_not_put_a_finished_job_back(store, restarts):
    leaf = chain(1)
    job = job_of(store, [leaf], requeues=3, grace_seconds=50.0, prepare=_warn)

    def requeue(number, frame):
        raise AssertionError("put back")

    with within_job("5", SLURM_RESTART_COUNT=restarts):
        signal.signal(signal.SIGUSR2, requeue)
        job()
        left, _ = signal.getitimer(signal.ITIMER_REAL)

    assert store.has(leaf)
    assert store.attempts(leaf.key)[-1]["outcome"] == "executed"
    assert left == 0


def _warn() -> None:
    os.kill(os.getpid(), signal.SIGUSR2)


def test_stage_that_does_not_stop_in_time_is_left_and_its_claim_given_back(store, root):
    leaf = chain(2)
    job = job_of(store, lineage((leaf,)), grace_seconds=0.2)
    (root / "trouble-1").write_text("hold")

    def requeue(number, frame):
        raise SystemExit

    def warn():
        wait_for((root / "holding-1").exists)
        os.kill(os.getpid(), signal.SIGUSR2)

    with within_job("5"):
        signal.signal(signal.SIGUSR2, requeue)
        thread = threading.Thread(target=warn)
        thread.start()
        with pytest.raises(SystemExit):
            job()
        thread.join()

    assert not store.has(leaf)
    claim = Claims(store.claims).take(leaf.key)
    assert claim is not None
    claim.release()


def test_second_warning_does_not_prolong_the_first():
    call = PreemptionHandler(signal.SIG_DFL, 50.0)
    with within_job("5"):
        call.handle(signal.SIGUSR2, None)
        signal.setitimer(signal.ITIMER_REAL, 10.0)
        call.handle(signal.SIGUSR2, None)
        left, _ = signal.getitimer(signal.ITIMER_REAL)

    assert call.received()
    assert left <= 10.0


def test_warning_that_nobody_would_answer_fails_the_job():
    with pytest.raises(TimeUp, match="its requeue limit is reached"):
        PreemptionHandler(signal.SIG_DFL, 1.0).requeue()


def test_id_of_a_job_is_that_of_the_queue(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)

    assert job_id() == ""
    with within_job("5"):
        assert job_id() == "5"
    with within_job("5_0"):
        assert job_id() == "5_0"


def test_checkpoint_of_a_job_is_the_job_itself(store):
    job = Requeueable(job_of(store, [chain(1)]))

    assert job.checkpoint().function is job


@pytest.mark.parametrize("why", [{"code": "other"}, {"requeues": 0}])
def test_job_that_may_not_begin_succeeds_if_everything_is_stored(store, root, why):
    leaf = chain(2)
    run(root, [leaf])

    with within_job("5", SLURM_RESTART_COUNT="1"):
        job_of(store, lineage((leaf,)), **why)()

    assert store.attempts(leaf.key)[-1]["outcome"] == "executed"


def test_stage_that_failed_here_and_was_finished_by_another_process_fails_nobody(store, root, monkeypatch):
    bad = chain(2)
    child = Add(parent=bad, amount=9)
    job = job_of(store, lineage((child,)))
    real = worker.attempt

    def attempt(stage, context):
        if stage is not context.store.stage(bad.key):
            return real(stage, context)
        run(root, [bad])
        return worker.AttemptResult(key=stage.key, outcome="failed", message="the other was faster")

    monkeypatch.setattr(worker, "attempt", attempt)

    with within_job("5"):
        job()

    assert store.has(child)
