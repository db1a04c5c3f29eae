"""Submissions: what Slurm is given, in which order and with which edges, and what a second submission adds."""

import os
import pickle
import platform
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
from fake_scheduler import FakeJob, FakeScheduler, executor, submit
from toys import ALLOW, Add, Mix, Number, chain, run, runs

from harness.engine.claim import Claims
from harness.engine.plan import Plan
from harness.engine.provenance import source_digest
from harness.engine.store import Store
from harness.errors import Interrupted, SchedulerError, StoreError
from harness.execution.state import Member
from harness.slurm import snapshot
from harness.slurm.client import Request
from harness.slurm.dry_run import DryRun
from harness.slurm.job_log import JobLog
from harness.slurm.lock import SUBMITTING
from harness.slurm.states import states_of
from harness.slurm.worker import Job

TRACE = {"outcome": "failed", "cause": "RuntimeError", "traceback": "boom", "started": "2020", "seconds": 1.0}


@pytest.fixture
def scheduler() -> FakeScheduler:
    return FakeScheduler()


def fan(amounts, *, start=0.0):
    number = Number(value=start)
    return number, [Add(parent=number, amount=amount) for amount in amounts]


def edges(scheduler):
    return [(list(request.after_ok), list(request.after_any)) for request in scheduler.requests]


def keys(scheduler):
    return [[key for line in job.lines for key in line] for request in scheduler.requests for job in request.jobs]


def stored(store, stages):
    return all(store.has(stage) for stage in stages)


def test_graph_is_submitted_with_edges_and_runs_to_the_end(store, scheduler):
    number, adds = fan([1, 2])
    leaf = Mix(left=adds[0], right=adds[1])

    outcome = submit(store, scheduler, [leaf])
    scheduler.work_off()

    assert edges(scheduler) == [([], []), (["1"], []), (["2_0", "2_1"], [])]
    assert outcome.submitted == {number.key: "1", adds[0].key: "2_0", adds[1].key: "2_1", leaf.key: "3"}
    assert (outcome.calls, outcome.deferred, outcome.complete) == (3, True, True)
    assert stored(store, [number, *adds, leaf])


def test_job_of_a_failed_parent_ends_without_a_run_and_unrelated_ones_go_on(store, root, scheduler):
    number, (bad, good) = fan([1, 2])
    child = Add(parent=bad, amount=3)
    submit(store, scheduler, [child, good])
    (root / "trouble-1").write_text("bug")

    scheduler.work_off()

    assert stored(store, [number, good])
    assert runs(root)["add:3"] == 0
    assert {name: ended.state for name, ended in scheduler.ended.items()}["3"] == "CANCELLED"


def test_line_is_one_job_that_runs_its_stages_in_order(store, scheduler):
    leaf = chain(3)

    submit(store, scheduler, [leaf], joins=("add",))
    scheduler.work_off()

    assert len(scheduler.requests) == 1
    assert store.has(leaf)


def test_job_that_runs_more_than_is_needed_only_has_to_end(store, scheduler):
    numbers = [Number(value=value) for value in (0.0, 1.0)]
    adds = [Add(parent=number, amount=5) for number in numbers]

    submit(store, scheduler, adds, pack={"number": 2})

    assert edges(scheduler) == [([], []), ([], ["1"]), ([], ["1"])]


def test_packed_job_that_is_needed_as_a_whole_has_to_succeed(store, scheduler):
    numbers = [Number(value=value) for value in (0.0, 1.0)]

    submit(store, scheduler, [Mix(left=numbers[0], right=numbers[1])], pack={"number": 2})

    assert edges(scheduler)[-1] == (["1"], [])


def test_child_of_a_line_that_goes_on_only_waits_for_its_end(store, scheduler):
    number = Number(value=0.0)
    first = Add(parent=number, amount=1)
    submit(store, scheduler, [first], joins=("add",))

    submit(store, scheduler, [Add(parent=number, amount=2)], sweep="toys-2", joins=("add",))

    assert edges(scheduler) == [([], []), ([], ["1"])]


def test_second_sweep_depends_on_the_jobs_of_the_first(store, root, scheduler):
    number, (first, second) = fan([1, 2])
    submit(store, scheduler, [first])

    outcome = submit(store, scheduler, [first, second], sweep="toys-2")
    scheduler.work_off()

    assert keys(scheduler) == [[number.key], [first.key], [second.key]]
    assert edges(scheduler)[-1] == (["1"], [])
    assert outcome.submitted == {number.key: "1", first.key: "2", second.key: "3"}
    assert set(runs(root).values()) == {1}


def test_same_sweep_submitted_again_submits_nothing(store, scheduler):
    submit(store, scheduler, [chain(3)])

    outcome = submit(store, scheduler, [chain(3)])

    assert (len(scheduler.requests), outcome.calls, len(outcome.submitted)) == (3, 0, 3)


def test_stored_plan_asks_nobody(store, scheduler):
    leaf = chain(1)
    submit(store, scheduler, [leaf])
    scheduler.work_off()
    scheduler.asked.clear()

    outcome = submit(store, scheduler, [leaf])

    assert outcome.stored == (leaf.key,)
    assert not scheduler.asked


@pytest.mark.parametrize("never", [False, True])
def test_stages_of_dead_jobs_are_submitted_again(store, scheduler, never):
    leaf = chain(2)
    submit(store, scheduler, [leaf])
    if never:
        for job in scheduler.jobs.values():
            job.reason = "DependencyNeverSatisfied"
    else:
        scheduler.jobs.clear()

    outcome = submit(store, scheduler, [leaf])

    assert set(outcome.submitted.values()) == {"3", "4"}
    assert edges(scheduler)[-1] == (["3"], [])


def test_failed_stage_of_a_job_that_goes_on_is_submitted_again_with_what_it_blocked(store, root, scheduler):
    number = Number(value=0.0)
    bad, good = Add(parent=number, amount=1), Add(parent=number, amount=2)
    child = Mix(left=bad, right=bad)
    leaves = [child, good]
    settings = {"joins": ("mix",), "pack": {"add": 2}}
    submit(store, scheduler, leaves, **settings)
    (root / "trouble-1").write_text("bug")
    packed = scheduler.jobs["2"]
    scheduler.work_off()
    scheduler.jobs["2"] = packed
    packed.state = "RUNNING"
    (store.folder(good) / "manifest.json").unlink()

    outcome = submit(store, scheduler, leaves, **settings)

    assert outcome.submitted == {bad.key: "3", child.key: "3", good.key: "2"}


def test_cap_leaves_the_rest_to_a_continuation_that_submits_it(store, root, scheduler):
    _, adds = fan(range(1, 8))

    outcome = submit(store, scheduler, adds, job_cap=4)

    assert len(scheduler.jobs) <= 4
    assert outcome.left == 8 - len(outcome.submitted)
    assert scheduler.requests[-1].name == "submit toys-1"
    scheduler.before_submit = lambda request: _within_cap(scheduler, request, 4)
    scheduler.work_off()
    assert stored(store, adds)
    assert set(runs(root).values()) == {1}


@pytest.mark.parametrize("cap", [3, 4, 6])
def test_smallest_caps_make_progress(store, scheduler, cap):
    _, adds = fan(range(1, 12))
    scheduler.before_submit = lambda request: _within_cap(scheduler, request, cap)

    submit(store, scheduler, adds, job_cap=cap)
    scheduler.work_off()

    assert stored(store, adds)
    assert len(scheduler.requests) < 40


def _within_cap(scheduler, request, cap):
    assert len(scheduler.jobs) + len(request.jobs) <= cap
    assert len(scheduler.requests) < 100, "no progress"


def test_jobs_of_others_do_not_fill_the_cap(store, scheduler, monkeypatch):
    monkeypatch.setenv("LOGNAME", "somebody")
    submit(store, scheduler, [Number(value=float(value)) for value in range(5)], sweep="theirs")
    monkeypatch.setenv("LOGNAME", "me")

    outcome = submit(store, scheduler, [Number(value=-1.0)], job_cap=3)

    assert outcome.left == 0


def test_continuation_survives_a_pickle_and_submits_the_rest(store, scheduler):
    base, adds = fan(range(1, 6))
    submit(store, scheduler, adds, job_cap=3)
    continuation = pickle.dumps(scheduler.requests[-1].jobs[0])
    calls = len(scheduler.requests)
    scheduler.jobs.clear()
    run(store.root, [base])

    pickle.loads(continuation)()

    assert len(scheduler.requests) > calls


def test_continuation_of_a_cancelled_sweep_submits_nothing(store, root, scheduler):
    _, adds = fan(range(1, 6))
    submit(store, scheduler, adds, job_cap=3)
    calls = len(scheduler.requests)
    JobLog(root).cancel("toys-1")
    scheduler.jobs.clear()

    scheduler.requests[-1].jobs[0]()

    assert len(scheduler.requests) == calls


def test_cancel_during_a_submission_stops_it_and_what_was_submitted_is_known(store, root, scheduler):
    scheduler.before_submit = lambda _: JobLog(root).cancel("toys-1")

    with pytest.raises(Interrupted, match="1 calls of sbatch"):
        submit(store, scheduler, [chain(3)])

    assert [entry.job for entry in JobLog(root).entries("toys-1")] == ["1"]


def test_refusal_of_the_scheduler_keeps_what_was_submitted_before(store, root, scheduler):
    scheduler.before_submit = lambda _: setattr(scheduler, "down", len(scheduler.requests) == 1)
    with pytest.raises(SchedulerError):
        submit(store, scheduler, [chain(3)])
    scheduler.down = False
    scheduler.before_submit = lambda _: None

    submit(store, scheduler, [chain(3)])
    scheduler.work_off()

    assert [len(request.jobs) for request in scheduler.requests] == [1, 1, 1]
    assert store.has(chain(3))


def test_node_that_died_is_excluded_from_then_on(store, root, scheduler):
    leaf = chain(1)
    for node in ("n1", "n2"):
        (job,) = submit(store, scheduler, [leaf]).submitted.values()
        scheduler.end(job, "NODE_FAIL", nodes=node)

    submit(store, scheduler, [leaf])

    assert [request.parameters.get("exclude") for request in scheduler.requests] == [None, "n1", "n1,n2"]
    assert JobLog(root).latest()[leaf.key].excluded == ("n1", "n2")


def test_node_that_died_is_excluded_with_those_that_the_user_excludes(store, scheduler):
    leaf = chain(1)
    own = {"exclude": "bad[1-3]", "constraint": "gpu"}
    (job,) = submit(store, scheduler, [leaf], sbatch=own).submitted.values()
    scheduler.end(job, "NODE_FAIL", nodes="n1")

    submit(store, scheduler, [leaf], sbatch=own)

    lists = [request.parameters["additional_parameters"] for request in scheduler.requests]
    assert [(each["exclude"], each["constraint"]) for each in lists] == [("bad[1-3]", "gpu"), ("bad[1-3],n1", "gpu")]
    assert not any("exclude" in request.parameters for request in scheduler.requests)


def test_out_of_memory_shrinks_only_if_asked_and_each_time_again(store, root, scheduler):
    leaf = chain(1)
    for on_oom in ("fail", "shrink", "shrink"):
        (job,) = submit(store, scheduler, [leaf], on_oom=on_oom).submitted.values()
        scheduler.end(job, "OUT_OF_MEMORY")

    submit(store, scheduler, [leaf], on_oom="shrink")

    assert [dict(request.jobs[0].shrink) for request in scheduler.requests] == [
        {},
        {leaf.key: 2},
        {leaf.key: 4},
        {leaf.key: 8},
    ]
    assert JobLog(root).latest()[leaf.key].shrink == {leaf.key: 8}


def test_three_same_tracebacks_are_refused_until_the_code_is_another(store, root, scheduler, monkeypatch):
    _, (bad, good) = fan([1, 2])
    child = Add(parent=bad, amount=3)
    store.prepare()
    (root / "trouble-1").write_text("bug")
    for _ in range(3):
        submit(store, scheduler, [child, good])
        scheduler.work_off()

    refused = submit(store, scheduler, [child, good])

    assert set(refused.failed) == {bad.key}
    assert "3 times with the same traceback" in refused.failed[bad.key].message
    assert refused.blocked == {child.key: bad.key}
    assert not refused.complete
    monkeypatch.setattr("harness.slurm.retry_policy.source_digest", lambda _: "other code")
    assert set(submit(store, scheduler, [child, good]).submitted) == {bad.key, child.key}


@pytest.mark.parametrize("cause", ["work folder", "checkpoint", "input"])
def test_refusal_is_lifted_when_what_the_stage_meets_is_another(store, root, scheduler, cause):
    _, (bad,) = fan([1])
    store.prepare()
    checkpoint = store.work(bad.key) / "checkpoints" / "checkpoint-3" / "method.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("damaged")
    (root / "trouble-1").write_text("bug")
    for _ in range(3):
        submit(store, scheduler, [bad])
        scheduler.work_off()
    refused = submit(store, scheduler, [bad])
    match cause:
        case "work folder":
            shutil.rmtree(store.work(bad.key))
        case "checkpoint":
            shutil.rmtree(checkpoint.parent)
        case "input":
            store.set_aside(bad.parent)
            assert run(root, [bad.parent]).complete

    again = submit(store, scheduler, [bad])
    scheduler.work_off()

    assert "neither the code, nor its inputs" in refused.failed[bad.key].message
    assert str(store.work(bad.key)) in refused.failed[bad.key].message
    assert set(again.submitted) == {bad.key}
    # It met the same once more, and nothing has changed since.
    assert set(submit(store, scheduler, [bad]).failed) == {bad.key}


def test_two_same_tracebacks_and_another_are_not_refused(store, scheduler):
    leaf = chain(1)
    store.prepare()
    for trace in ("boom", "boom", "bang"):
        store.record_attempt(leaf.key, {**TRACE, "traceback": trace})

    assert submit(store, scheduler, [leaf]).complete


def test_waiting_executor_returns_what_was_executed_failed_and_blocked(store, root, scheduler, monkeypatch):
    number, (bad, good) = fan([1, 2])
    child = Add(parent=bad, amount=3)
    grandchild = Add(parent=child, amount=4)
    store.prepare()
    (root / "trouble-1").write_text("bug")
    # In that module alone: others sleep as well, as the library of claims does.
    monkeypatch.setattr("harness.slurm.executor.time", SimpleNamespace(sleep=lambda _: scheduler.work_off()))
    told = []

    outcome = submit(store, scheduler, [grandchild, good], wait=True, on_event=lambda event: told.append(event.what))

    assert set(outcome.executed) == {number.key, good.key}
    assert outcome.failed[bad.key].cause == "code error"
    assert outcome.blocked == {child.key: bad.key, grandchild.key: bad.key}
    assert not outcome.submitted
    assert told == ["pending"] * 5 + ["executed"] * 2 + ["failed"]


def test_waiting_executor_tells_why_a_stage_was_refused(store, scheduler):
    leaf = chain(1)
    store.prepare()
    for _ in range(3):
        store.record_attempt(leaf.key, {**TRACE, "code": source_digest(ALLOW)})

    outcome = submit(store, scheduler, [leaf], wait=True)

    assert outcome.failed[leaf.key].cause == "same error"


def test_store_with_a_percent_sign_in_its_path_is_refused(tmp_path, scheduler):
    with pytest.raises(StoreError, match="%"):
        submit(Store(tmp_path / "100%", allow=ALLOW), scheduler, [chain(1)])


def test_two_submissions_at_once_never_submit_a_stage_twice(store, scheduler, monkeypatch):
    monkeypatch.setattr("harness.slurm.lock._POLL_SECONDS", 0.01)
    _, adds = fan(range(1, 5))
    plan = Plan.of([*adds, Mix(left=adds[0], right=adds[1])])

    with ThreadPoolExecutor(4) as pool:
        asked = [
            pool.submit(executor(scheduler, sweep=f"toys-{number}").run, plan, Store(store.root, allow=ALLOW))
            for number in range(4)
        ]
        outcomes = [one.result() for one in asked]

    submitted = [key for job in keys(scheduler) for key in job]
    assert sorted(submitted) == sorted(stage.key for stage in plan.stages)
    assert len({tuple(sorted(outcome.submitted.items())) for outcome in outcomes}) == 1


def test_queue_that_does_not_answer_submits_nothing(store, scheduler):
    scheduler.down = True

    with pytest.raises(SchedulerError):
        submit(store, scheduler, [chain(2)])

    assert not scheduler.requests


def test_continuation_leaves_what_failed_to_a_retry(store, scheduler):
    _, adds = fan(range(1, 6))
    submit(store, scheduler, adds, job_cap=3)
    continuation = scheduler.requests[-1].jobs[0]
    calls = len(scheduler.requests)
    scheduler.jobs.clear()

    continuation()

    assert len(scheduler.requests) == calls, "its base never came to be, and nobody asked for it again"


def test_second_submission_takes_over_from_a_continuation_that_waits(store, scheduler):
    _, adds = fan(range(1, 6))
    submit(store, scheduler, adds, job_cap=3)
    (waiting,) = [entry.job for entry in JobLog(store.root).entries() if not entry.keys]

    submit(store, scheduler, adds, job_cap=3)

    alive = [entry.job for entry in JobLog(store.root).entries() if not entry.keys and entry.job in scheduler.jobs]
    assert waiting in scheduler.cancelled
    assert len(alive) == 1


def test_packed_lines_do_not_fall_with_a_stage_that_only_one_of_them_needs(store, scheduler):
    common, first, second = Number(value=0.0), Number(value=1.0), Number(value=2.0)
    leaves = [Mix(left=common, right=one) for one in (first, second)]

    submit(store, scheduler, leaves, pack={"mix": 2})

    request = scheduler.requests[-1]
    jobs = {key: entry.job for key, entry in JobLog(store.root).latest().items()}
    assert request.after_ok == [jobs[common.key]]
    assert request.after_any == sorted([jobs[first.key], jobs[second.key]])


def waiting_continuation(scheduler):
    (name,) = [name for name, job in scheduler.jobs.items() if job.request.name.startswith("submit")]
    return name, scheduler.jobs[name].request


def test_stage_that_is_stored_while_a_continuation_looks_takes_nothing_along(store, scheduler, monkeypatch):
    base, adds = fan([1, 2, 3])
    submit(store, scheduler, adds, job_cap=3)
    name, _ = waiting_continuation(scheduler)
    real = snapshot.states_of

    def late(*arguments, **settings):
        monkeypatch.setattr(snapshot, "states_of", real)
        run(store.root, [base])
        scheduler.end("1", "COMPLETED")
        return real(*arguments, **settings)

    monkeypatch.setattr(snapshot, "states_of", late)
    scheduler._execute(name)
    scheduler.work_off()

    assert stored(store, adds)


def test_cap_lets_in_as_many_tasks_of_a_batch_as_there_is_room_for(store, scheduler):
    for number in range(6):
        scheduler.jobs[f"9{number}"] = FakeJob(print, Request(name="notebook", folder=store.root, jobs=[]))

    outcome = submit(store, scheduler, [Number(value=float(value)) for value in range(40)], job_cap=20)

    assert [len(request.jobs) for request in scheduler.requests] == [13, 1]
    assert outcome.left == 27
    assert len(scheduler.jobs) == 20


def test_continuation_waits_for_jobs_of_the_harness_that_move_and_for_no_others(store, scheduler):
    submit(store, scheduler, [Number(value=float(value)) for value in range(3)], sweep="before")
    submit(store, scheduler, [Number(value=-1.0)], sweep="held")
    scheduler.jobs["2"].reason = "JobHeldUser"
    scheduler.jobs["99"] = FakeJob(print, Request(name="notebook", folder=store.root, jobs=[]))

    submit(store, scheduler, fan([1, 2], start=7.0)[1], job_cap=6)

    _, request = waiting_continuation(scheduler)
    assert request.after_any == ["1"]


def test_continuation_that_has_nothing_to_wait_for_looks_again_later(store, scheduler):
    for number in range(3):
        scheduler.jobs[f"9{number}"] = FakeJob(print, Request(name="notebook", folder=store.root, jobs=[]))

    submit(store, scheduler, [chain(2)], job_cap=4)

    _, request = waiting_continuation(scheduler)
    assert request.after_any == []
    assert request.parameters["additional_parameters"] == {"begin": "now+300"}


def test_continuation_is_requeued_as_other_jobs_are_and_warned_late(store, scheduler):
    submit(store, scheduler, [chain(4)], job_cap=3, requeues=2)

    _, request = waiting_continuation(scheduler)
    assert request.requeues == 2
    assert request.parameters["signal_delay_s"] == 30


def test_continuation_of_other_code_is_refused_and_says_so_at_what_was_left(store, scheduler):
    _, adds = fan([1, 2, 3])
    child = Add(parent=adds[-1], amount=9)
    drifting(store, scheduler, [*adds[:-1], child], job_cap=3)
    calls = len(scheduler.requests)

    scheduler.work_off()

    assert len(scheduler.requests) == calls
    name = next(job for job, ended in scheduler.ended.items() if ended.state == "FAILED")
    members = {
        stage.key: Member(stage.name, [p.key for p in stage.parents]) for stage in Plan.of([child, *adds]).stages
    }
    states = states_of(members, store, scheduler, sweep="toys-1")
    assert (states[adds[-1].key].what, states[adds[-1].key].cause) == ("failed", "code drift")
    assert states[adds[-1].key].job == name
    assert states[child.key].what == "blocked"


def test_continuation_of_other_code_that_is_allowed_submits_jobs_of_the_first(store, scheduler):
    _, adds = fan([1, 2, 3])
    drifting(store, scheduler, adds, job_cap=3, allow_drift=True)

    scheduler.work_off()

    assert stored(store, adds)
    assert {job.code for request in scheduler.requests for job in request.jobs if isinstance(job, Job)} == {"first"}


def drifting(store, scheduler, leaves, **settings):
    """Submit with code that is not there any more when the jobs run."""
    first = replace(executor(scheduler, **settings), code="first")
    first.run(Plan.of(leaves), Store(store.root, allow=ALLOW))
    if not settings.get("allow_drift"):
        for job in scheduler.jobs.values():
            if isinstance(job.run, Job):
                job.run = replace(job.run, code=source_digest(ALLOW))


def test_continuation_asks_a_slurm_that_does_not_answer_again(store, scheduler, monkeypatch):
    _, adds = fan([1, 2, 3])
    submit(store, scheduler, adds, job_cap=3)
    name, _ = waiting_continuation(scheduler)
    scheduler.down = True
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        scheduler.down = len(pauses) < 3

    monkeypatch.setattr("harness.slurm.executor.time.sleep", sleep)
    scheduler._execute(name)
    scheduler.work_off()

    assert pauses == [5.0, 10.0, 20.0]
    assert stored(store, adds)


def test_continuation_gives_up_on_a_slurm_that_never_answers(store, scheduler, monkeypatch):
    _, adds = fan([1, 2, 3])
    submit(store, scheduler, adds, job_cap=3)
    scheduler.down = True
    monkeypatch.setattr("harness.slurm.executor.time.sleep", lambda _: None)

    with pytest.raises(SchedulerError):
        waiting_continuation(scheduler)[1].jobs[0]()


def test_continuation_of_another_user_that_cannot_be_ended_ends_nothing(store, scheduler, monkeypatch):
    _, adds = fan([1, 2, 3])
    monkeypatch.setenv("LOGNAME", "somebody")
    submit(store, scheduler, adds, job_cap=3)
    monkeypatch.setenv("LOGNAME", "me")

    outcome = submit(store, scheduler, adds)

    assert outcome.left == 0
    assert len(outcome.submitted) == 4


@pytest.mark.parametrize("end", ["CANCELLED", "requeued", "never"])
def test_job_that_is_ending_is_waited_for_before_it_is_depended_on(store, scheduler, monkeypatch, end):
    leaf = chain(2)
    submit(store, scheduler, [leaf])
    scheduler.jobs["1"].state = "COMPLETING"
    scheduler.end("2", "CANCELLED")

    def sleep(seconds):
        if end == "CANCELLED":
            scheduler.end("1", end)
        elif end == "requeued":
            scheduler.jobs["1"].state = "PENDING"
        else:
            monkeypatch.setattr("harness.slurm.snapshot.ENDING_SECONDS", -100.0)
            monkeypatch.setattr("harness.slurm.snapshot.time.monotonic", lambda: float("inf"))

    monkeypatch.setattr("harness.slurm.snapshot.time.sleep", sleep)
    told = []
    outcome = submit(store, scheduler, [leaf], on_event=told.append)

    (number,) = leaf.parents
    assert [event.message for event in told if event.what == "busy"] == [
        "job 1 is completing; waiting up to 60 s for it"
    ]
    first = "1" if end == "requeued" else "3"
    assert outcome.submitted[number.key] == first
    assert edges(scheduler)[-1] == ([first], [])


def test_three_failures_for_memory_are_not_the_same_error(store, scheduler):
    leaf = chain(1)
    store.prepare()
    for _ in range(3):
        store.record_attempt(leaf.key, {**TRACE, "cause": "MemoryError", "code": source_digest(ALLOW)})

    outcome = submit(store, scheduler, [leaf], on_oom="shrink")

    assert outcome.complete
    assert dict(scheduler.requests[-1].jobs[0].shrink) == {leaf.key: 2}


def test_waiting_executor_survives_a_job_that_slurm_will_never_start_for_no_reason_known_here(store, scheduler):
    leaf = chain(1)

    class Blocking(FakeScheduler):
        def submit(self, request):
            ids = super().submit(request)
            self.jobs[ids[0]].reason = "DependencyNeverSatisfied"
            return ids

    outcome = submit(store, Blocking(), [leaf], wait=True)

    assert outcome.blocked == {leaf.key: leaf.key}


def hold(scheduler, job):
    scheduler.jobs[job].reason, scheduler.jobs[job].priority = "launch failed requeued held", 0


def test_held_job_is_told_and_left_and_what_needs_it_waits_for_it(store, scheduler):
    number, (first, second) = fan([1, 2])
    submit(store, scheduler, [first])
    hold(scheduler, "1")
    told = []

    outcome = submit(store, scheduler, [first, second], on_event=told.append)

    assert outcome.submitted == {number.key: "1", first.key: "2", second.key: "3"}
    assert edges(scheduler)[-1] == (["1"], [])
    (said,) = [event.message for event in told if event.what == "busy"]
    assert "`scontrol release 1`" in said
    assert "launch failed requeued held" in said


def test_waiting_executor_does_not_hang_on_a_held_job(store, scheduler, monkeypatch):
    number, (add,) = fan([1])
    other = Number(value=9.0)
    jobs = submit(store, scheduler, [add, other]).submitted
    hold(scheduler, jobs[number.key])

    def sleep(_):
        run(store.root, [other])
        scheduler.end(jobs[other.key], "COMPLETED")

    monkeypatch.setattr("harness.slurm.executor.time", SimpleNamespace(sleep=sleep))

    outcome = submit(store, scheduler, [add, other], wait=True)

    assert outcome.executed == (other.key,)
    assert set(outcome.failed) == {number.key, add.key}
    assert f"scontrol release {jobs[number.key]}" in outcome.failed[number.key].message


def test_continuation_waits_for_nothing_that_waits_for_a_held_job(store, scheduler):
    _, adds = fan([1, 2, 3, 4])
    submit(store, scheduler, adds[:1])
    hold(scheduler, "1")
    scheduler.jobs["2"].reason = "Dependency"
    submit(store, scheduler, [Number(value=9.0)], sweep="moving")

    submit(store, scheduler, adds, job_cap=5)

    _, request = waiting_continuation(scheduler)
    assert request.after_any == ["3"], "its own array waits for the job that is held"
    assert [one.after_ok for one in scheduler.requests[-2:-1]] == [["1"]]


def test_continuation_that_could_only_wait_for_held_jobs_looks_again_later(store, scheduler):
    _, adds = fan([1, 2, 3, 4])
    submit(store, scheduler, adds[:1])
    hold(scheduler, "1")
    scheduler.jobs["2"].reason = "Dependency"

    submit(store, scheduler, adds, job_cap=4)

    _, request = waiting_continuation(scheduler)
    assert request.after_any == []
    assert request.parameters["additional_parameters"] == {"begin": "now+300"}


@pytest.mark.parametrize("when", ["between two calls", "during a call"])
def test_submitter_that_slept_submits_nothing_that_another_has_submitted(store, scheduler, monkeypatch, when):
    leaf = chain(4)
    told = []

    def sleep():
        """Sleep for so long that the claim is taken over, used and given back."""
        (store.claims / SUBMITTING).unlink()
        monkeypatch.undo()
        scheduler.after_submit = lambda _: None
        submit(store, scheduler, [leaf], sweep="other")

    def cancelled(self, sweep):
        if len(scheduler.requests) == 1:
            sleep()
        return False

    if when == "between two calls":
        monkeypatch.setattr(JobLog, "cancelled", cancelled)
    else:
        scheduler.after_submit = lambda _: sleep()

    outcome = submit(store, scheduler, [leaf], on_event=told.append)

    living = [key for job in scheduler.jobs.values() for line in job.run.lines for key in line]
    assert sorted(living) == sorted(stage.key for stage in Plan.of([leaf]).stages)
    assert {outcome.submitted[key] for key in living} == set(scheduler.jobs)
    assert [event.message for event in told if event.what == "busy"] == [
        "another process submitted while this one was suspended; starting over"
    ]


def test_wait_for_a_turn_is_told_once_with_its_holder(store, scheduler, monkeypatch):
    monkeypatch.setattr("harness.slurm.lock.NOTIFY_SECONDS", 0.0)
    store.prepare()
    claim = Claims(store.claims).take(SUBMITTING)
    looks = []

    def sleep(_):
        looks.append(1)
        if len(looks) == 3:
            claim.release()

    monkeypatch.setattr("harness.slurm.lock.time.sleep", sleep)
    told = []

    submit(store, scheduler, [chain(1)], on_event=told.append)

    (said,) = [event.message for event in told if event.what == "busy"]
    assert said.startswith(f"process {os.getpid()} on {platform.node()} ")


def interrupted(scheduler, number=2):
    """Let a submitter die when the scheduler has taken this many requests and before it hears of the last."""

    def die(_):
        if len(scheduler.requests) == number:
            raise KeyboardInterrupt

    scheduler.after_submit = die


def test_job_that_an_interrupted_submission_never_heard_of_is_ended_by_the_next(store, root, scheduler):
    _, adds = fan([1, 2, 3])
    interrupted(scheduler)
    with pytest.raises(Interrupted):
        submit(store, scheduler, adds)
    assert [entry.job for entry in JobLog(root).entries()] == ["1"]
    assert set(scheduler.jobs) == {"1", "2_0", "2_1", "2_2"}
    scheduler.after_submit = lambda _: None

    submit(store, scheduler, adds)

    assert set(scheduler.cancelled) == {"2_0", "2_1", "2_2"}
    assert set(scheduler.jobs) == {"1", "3_0", "3_1", "3_2"}


def test_stray_job_of_another_sweep_is_left_to_its_own(store, scheduler):
    interrupted(scheduler)
    with pytest.raises(Interrupted):
        submit(store, scheduler, [chain(2)])
    scheduler.after_submit = lambda _: None

    submit(store, scheduler, [Number(value=9.0)], sweep="other")

    assert not scheduler.cancelled


def test_rehearsal_ends_no_stray_job(store, scheduler):
    interrupted(scheduler)
    with pytest.raises(Interrupted):
        submit(store, scheduler, [chain(2)])
    scheduler.after_submit = lambda _: None

    replace(executor(scheduler), scheduler=DryRun()).run(Plan.of([chain(2)]), store)

    assert set(scheduler.jobs) == {"1", "2"}


def test_interrupt_during_a_call_is_heard_when_its_answer_is_written(store, root, scheduler):
    scheduler.after_submit = lambda _: signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="harness cancel toys-1"):
        submit(store, scheduler, [chain(3)])

    assert [entry.job for entry in JobLog(root).entries()] == list(scheduler.jobs) == ["1"]


@pytest.mark.parametrize("line", ['[{"job": "12"', "\x00\x00"])
def test_damaged_ledger_of_another_sweep_stops_no_submission(store, scheduler, line):
    (JobLog(store.root).open("other") / "ledger.jsonl").write_text(f"{line}\n")

    assert submit(store, scheduler, [chain(2)]).calls == 2
