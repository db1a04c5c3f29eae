"""States: what became of each stage, and why. The store's word first, Slurm's for the rest."""

import multiprocessing
import os
import platform
import signal
import time
from typing import get_args

import pytest
from fake_scheduler import FakeScheduler, submit
from toys import ALLOW, Add, Mix, Number, chain, run

from harness.engine.claim import LEASE_SECONDS, Claims, is_abandoned
from harness.engine.plan import Plan
from harness.engine.store import Store
from harness.execution.state import AttemptState, EventState, Member, StageState, SweepState, members_of
from harness.slurm.causes import Cause, cause_of
from harness.slurm.job_log import JobEntry, JobLog
from harness.slurm.states import states_of

FAILED = {
    "outcome": "failed",
    "cause": "DataError",
    "message": "3 rows",
    "started": "2999",
    "seconds": 1.0,
    "host": "h",
}


@pytest.fixture
def scheduler() -> FakeScheduler:
    return FakeScheduler()


def look(store, scheduler, *leaves, patient=False, sweep="toys-1"):
    members = {stage.key: Member(stage.name, [p.key for p in stage.parents]) for stage in Plan.of(leaves).stages}
    return states_of(members, Store(store.root, allow=ALLOW), scheduler, patient=patient, sweep=sweep)


def submitted(store, scheduler, leaf, **settings):
    return submit(store, scheduler, [leaf], **settings).submitted[leaf.key]


def claim(store, key, *, age=0.0):
    store.prepare()
    path = store.claims / key
    path.touch()
    os.utime(path, (time.time() - age,) * 2)


def test_sweep_that_was_never_submitted_is_pending_and_slurm_is_not_asked(store, scheduler):
    leaf = chain(2)

    states = look(store, scheduler, leaf)

    assert {state.what for state in states.values()} == {"pending"}
    assert states[leaf.key].message == "not started"
    assert not scheduler.asked


def test_stage_that_no_job_will_run_is_lost_unless_a_continuation_of_its_sweep_waits(store, scheduler):
    first, rest = Number(value=0.0), Number(value=1.0)
    submitted(store, scheduler, first)

    alone = look(store, scheduler, first, rest)
    ledger = JobLog(store.root)
    for job, sweep in (("76", "toys-1"), ("77", "big")):
        scheduler.jobs[job] = scheduler.jobs["1"]
        ledger.write(ledger.open(sweep), [JobEntry(job=job, keys=(), user="me")])
    continued = look(store, scheduler, first, rest)
    del scheduler.jobs["76"]
    others = look(store, scheduler, first, rest)

    assert (alone[first.key].what, alone[rest.key].what) == ("pending", "lost")
    assert (continued[rest.key].what, continued[rest.key].job) == ("pending", "76")
    assert (others[rest.key].what, others[rest.key].job) == ("lost", "76")


def test_stage_of_a_local_sweep_is_pending_though_a_submitted_one_shares_its_base(store, root, scheduler):
    base = Number(value=0.0)
    submitted(store, scheduler, base)
    scheduler.work_off()
    leaf = Add(parent=base, amount=1)

    found = look(store, scheduler, leaf, sweep="local")[leaf.key]

    assert (found.what, found.message) == ("pending", "not started")


def test_stage_that_was_left_to_a_continuation_waits_whatever_became_of_it_before(store, scheduler):
    first, rest, last = (Number(value=float(value)) for value in range(3))
    for job in submit(store, scheduler, [first, rest, last]).submitted.values():
        scheduler.end(job, "TIMEOUT")
    submit(store, scheduler, [first, rest, last], job_cap=2)

    found = look(store, scheduler, first, rest)

    (continuation,) = [job for job, one in scheduler.jobs.items() if one.request.name.startswith("submit")]
    assert [found[one.key].what for one in (first, rest)] == ["pending", "pending"]
    assert found[rest.key].job == continuation


def test_continuation_that_ended_without_submitting_is_told(store, scheduler):
    first, rest, last = (Number(value=float(value)) for value in range(3))
    submit(store, scheduler, [first, rest, last], job_cap=2)
    (continuation,) = [job for job, one in scheduler.jobs.items() if one.request.name.startswith("submit")]
    scheduler.end(continuation, "TIMEOUT")

    found = look(store, scheduler, first, rest)[rest.key]

    assert (found.what, found.job) == ("lost", continuation)
    assert "(timeout)" in found.message
    assert found.log.endswith(f"{continuation}_0_log.err")


def test_stored_stage_is_stored_whatever_slurm_says(store, root, scheduler):
    leaf = chain(1)
    job = submitted(store, scheduler, leaf)
    run(root, [leaf])
    scheduler.end(job, "FAILED", exit_code=1)

    assert look(store, scheduler, leaf)[leaf.key].what == "stored"


def test_waiting_job_is_pending_with_its_reason(store, scheduler):
    leaf = chain(1)
    job = submitted(store, scheduler, leaf)

    state = look(store, scheduler, leaf)[leaf.key]

    assert (state.what, state.message, state.job) == ("pending", "pending, Priority", job)


def test_running_job_runs_the_first_stage_of_its_line_and_those_that_are_claimed(store, scheduler):
    number = Number(value=0.0)
    leaf = Add(parent=Add(parent=number, amount=1), amount=2)
    job = submitted(store, scheduler, leaf, joins=("add",))
    scheduler.jobs[job].state, scheduler.jobs[job].reason = "RUNNING", "None"

    states = look(store, scheduler, leaf)

    assert [states[key].what for key in (number.key, leaf.parent.key, leaf.key)] == ["running", "pending", "pending"]
    claim(store, leaf.key)
    assert look(store, scheduler, leaf)[leaf.key].what == "running"


def test_stage_that_a_local_process_works_on_is_running_even_if_it_failed_before(store, scheduler):
    leaf = chain(1)
    claim(store, leaf.key)
    store.record_attempt(leaf.key, {**FAILED, "started": "2020"})

    assert look(store, scheduler, leaf)[leaf.key].what == "running"


def test_stage_that_a_process_works_on_is_running_though_an_earlier_job_of_it_ended(store, scheduler):
    leaf = chain(1)
    scheduler.end(submitted(store, scheduler, leaf), "CANCELLED")
    claim(store, leaf.key)

    assert look(store, scheduler, leaf)[leaf.key].what == "running"


def test_line_that_failed_and_runs_again_in_its_job_is_running(store, scheduler):
    leaf = chain(1)
    job = submitted(store, scheduler, leaf)
    scheduler.jobs[job].state, scheduler.jobs[job].reason = "RUNNING", "None"
    store.record_attempt(leaf.key, {**FAILED, "job": job})
    assert look(store, scheduler, leaf)[leaf.key].what == "failed"

    claim(store, leaf.key)

    found = look(store, scheduler, leaf)[leaf.key]
    assert (found.what, found.job) == ("running", job)


def test_claim_of_a_process_that_was_killed_is_no_run(store, scheduler):
    leaf = chain(1)
    job = submitted(store, scheduler, leaf)
    store.prepare()
    holder = multiprocessing.get_context("fork").Process(target=_hold, args=(store.claims, leaf.key))
    holder.start()
    holder.join()
    scheduler.end(job, "FAILED", signal=9)

    assert (store.claims / leaf.key).exists()
    assert look(store, scheduler, leaf)[leaf.key].cause == Cause.KILLED


def _hold(folder, key):
    held = Claims(folder).take(key)
    assert held is not None
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("node", "left"), [("far-away", True), ("elsewhere", False)])
def test_claim_of_another_host_is_left_behind_if_its_job_ended_there(store, node, left):
    store.prepare()
    claim = Claims(store.claims).take("key")
    assert claim is not None
    path = store.claims / "key"
    written = path.read_text()
    path.write_text(written.replace(f"{platform.node()}", "far-away"))
    assert path.read_text() != written

    assert is_abandoned(store.claims, "key", node) == left

    path.write_text(written)
    claim.release()


def test_claim_that_nobody_touches_is_no_run(store, scheduler):
    leaf = chain(1)
    claim(store, leaf.key, age=2 * LEASE_SECONDS)

    assert look(store, scheduler, leaf)[leaf.key].what == "pending"


@pytest.mark.parametrize(
    ("slurm", "cause"),
    [
        (("OUT_OF_MEMORY", 0, 125), Cause.HOST_MEMORY),
        (("TIMEOUT", 0, 0), Cause.TIME_LIMIT),
        (("DEADLINE", 0, 0), Cause.TIME_LIMIT),
        (("NODE_FAIL", 0, 0), Cause.NODE_FAILURE),
        (("BOOT_FAIL", 0, 0), Cause.NODE_FAILURE),
        (("PREEMPTED", 0, 0), Cause.PREEMPTION),
        (("CANCELLED", 0, 15), Cause.CANCELLED),
        (("COMPLETED", 0, 0), Cause.NO_MANIFEST),
        (("FAILED", 1, 0), Cause.CODE_ERROR),
        (("FAILED", 137, 0), Cause.KILLED),
        (("FAILED", 0, 9), Cause.KILLED),
    ],
)
def test_job_that_ended_without_a_word_has_the_cause_that_slurm_tells(store, scheduler, slurm, cause):
    state, code, signal = slurm
    leaf = chain(1)
    job = submitted(store, scheduler, leaf)
    scheduler.end(job, state, exit_code=code, signal=signal, nodes="n3")

    found = look(store, scheduler, leaf)[leaf.key]

    assert (found.what, found.cause, found.job, found.node) == ("failed", cause, job, "n3")
    assert found.message
    assert found.log.endswith(f"{job}_0_log.err")


@pytest.mark.parametrize(
    ("attempt", "cause"),
    [
        ({"cause": "OutOfMemoryError", "traceback": "..."}, Cause.GPU_MEMORY),
        ({"cause": "MemoryError", "traceback": "..."}, Cause.HOST_MEMORY),
        ({"cause": "RuntimeError", "traceback": "..."}, Cause.CODE_ERROR),
        ({"cause": "missing parent"}, Cause.MISSING_PARENT),
        ({"cause": "requeue limit"}, Cause.REQUEUES),
        ({"cause": "code drift"}, Cause.DRIFT),
        ({"cause": "killed"}, Cause.KILLED),
        ({"cause": "DataError"}, "DataError"),
    ],
)
def test_cause_of_an_attempt_is_that_of_its_record(attempt, cause):
    assert cause_of(attempt) == cause


def test_word_of_the_stage_wins_over_slurms(store, scheduler):
    leaf = chain(1)
    job = submitted(store, scheduler, leaf)
    store.record_attempt(leaf.key, {**FAILED, "job": job, "node": "n2"})
    scheduler.end(job, "CANCELLED")

    found = look(store, scheduler, leaf)[leaf.key]

    assert (found.what, found.cause, found.message, found.node) == ("failed", "DataError", "3 rows", "n2")


@pytest.mark.parametrize("started", ["2020", "2999"])
def test_attempt_of_a_job_that_was_replaced_does_not_count(store, scheduler, started):
    leaf = chain(1)
    first = submitted(store, scheduler, leaf)
    scheduler.end(first, "FAILED", exit_code=1)
    second = submitted(store, scheduler, leaf)
    store.record_attempt(leaf.key, {**FAILED, "job": first, "started": started})

    found = look(store, scheduler, leaf)[leaf.key]

    assert (found.what, found.job) == ("pending", second)


def test_failure_of_a_run_by_hand_counts_when_the_job_is_gone(store, scheduler):
    leaf = chain(1)
    job = submitted(store, scheduler, leaf)
    store.record_attempt(leaf.key, FAILED)

    assert look(store, scheduler, leaf)[leaf.key].what == "pending"
    scheduler.end(job, "TIMEOUT")
    assert look(store, scheduler, leaf)[leaf.key].cause == "DataError"


def test_interrupted_attempt_leaves_the_word_to_slurm(store, scheduler):
    leaf = chain(1)
    job = submitted(store, scheduler, leaf)
    store.record_attempt(leaf.key, {**FAILED, "outcome": "interrupted", "job": job})
    scheduler.end(job, "TIMEOUT")

    assert look(store, scheduler, leaf)[leaf.key].cause == Cause.TIME_LIMIT


def test_job_that_nobody_remembers_is_lost_and_blocks_what_needs_it(store, scheduler):
    number = Number(value=0.0)
    leaf = Add(parent=number, amount=1)
    submitted(store, scheduler, leaf)
    scheduler.jobs.clear()

    states = look(store, scheduler, leaf)

    assert (states[number.key].what, states[leaf.key].what) == ("lost", "blocked")
    assert f"needs number `{number.key}`, which is lost" in states[leaf.key].message


def test_accounting_that_hears_late_is_asked_again(store, scheduler):
    leaf = chain(1)
    job = submitted(store, scheduler, leaf)
    scheduler.jobs.clear()

    class Late(FakeScheduler):
        def history(self, jobs):
            found = super().history(jobs)
            self.end(job, "TIMEOUT")
            return found

    assert look(store, Late(), leaf, patient=True)[leaf.key].cause == Cause.TIME_LIMIT


def test_without_accounting_a_job_without_a_word_is_lost(store, scheduler):
    leaf = chain(1)
    scheduler.accounting = False
    scheduler.end(submitted(store, scheduler, leaf), "OUT_OF_MEMORY")

    assert look(store, scheduler, leaf)[leaf.key].what == "lost"


def test_without_squeue_the_manifests_and_attempts_are_told(store, root, scheduler):
    number = Number(value=0.0)
    bad, good = Add(parent=number, amount=1), Add(parent=number, amount=2)
    submit(store, scheduler, [bad, good])
    run(root, [number])
    store.record_attempt(bad.key, {**FAILED, "job": scheduler_job(store, bad)})
    scheduler.down = True

    states = look(store, scheduler, bad, good)

    assert [states[stage.key].what for stage in (number, bad, good)] == ["stored", "failed", "pending"]
    assert states[good.key].message == "Slurm does not respond"


def scheduler_job(store, stage):
    return JobLog(store.root).latest()[stage.key].job


def test_descendants_of_a_failed_stage_are_blocked_though_their_jobs_still_wait(store, scheduler):
    number = Number(value=0.0)
    child = Add(parent=number, amount=1)
    leaf = Add(parent=child, amount=2)
    submit(store, scheduler, [leaf])
    store.record_attempt(number.key, {**FAILED, "job": "1"})

    states = look(store, scheduler, leaf)

    assert [states[key].what for key in (number.key, child.key, leaf.key)] == ["failed", "blocked", "blocked"]


def test_job_whose_dependency_never_comes_is_blocked(store, scheduler):
    leaf = chain(1)
    scheduler.jobs[submitted(store, scheduler, leaf)].reason = "DependencyNeverSatisfied"

    assert look(store, scheduler, leaf)[leaf.key].what == "blocked"


def test_unrelated_stage_is_not_blocked(store, scheduler):
    one, other = Number(value=0.0), Number(value=1.0)
    store.prepare()
    store.record_attempt(one.key, FAILED)

    states = look(store, scheduler, Mix(left=one, right=one), other)

    assert states[other.key].what == "pending"


def test_job_that_ends_during_the_look_is_stored(store, root, scheduler):
    leaf = chain(1)
    job = submitted(store, scheduler, leaf)

    class Ending(FakeScheduler):
        def queue(self, users):
            run(root, [leaf])
            scheduler.end(job, "COMPLETED")
            return scheduler.queue(users)

    assert look(store, Ending(), leaf)[leaf.key].what == "stored"


def test_ten_thousand_stages_ask_the_scheduler_twice(store, scheduler):
    members = {f"{number:016x}": Member("finetune", []) for number in range(10_000)}
    folder = JobLog(store.root).open("big")
    entries = [JobEntry(job=f"1_{number}", keys=(key,), user="me") for number, key in enumerate(members)]
    JobLog(store.root).write(folder, entries)

    states = states_of(members, store, scheduler)

    assert {state.what for state in states.values()} == {"lost"}
    assert scheduler.asked == ["queue", "history"]


def test_members_of_a_record_keep_its_order():
    record = {"stages": {"b": {"kind": "number", "parents": []}, "a": {"kind": "add", "parents": ["b"]}}}

    assert list(members_of(record).items()) == [("b", Member("number", [])), ("a", Member("add", ["b"]))]


HELD = ("launch failed requeued held", 0)


def hold(scheduler, job):
    scheduler.jobs[job].reason, scheduler.jobs[job].priority = HELD


def test_job_that_slurm_holds_is_held_and_so_is_what_waits_for_it(store, scheduler):
    number, other = Number(value=0.0), Number(value=1.0)
    child = Add(parent=number, amount=1)
    jobs = submit(store, scheduler, [child, other]).submitted
    for job in scheduler.jobs.values():
        job.reason = "Dependency"
    hold(scheduler, jobs[number.key])

    states = look(store, scheduler, child, other)

    held, waits, free = (states[stage.key] for stage in (number, child, other))
    assert (held.what, held.held_by, held.reason) == ("held", jobs[number.key], HELD[0])
    assert f"`scontrol release {jobs[number.key]}`" in held.message
    assert (waits.what, waits.job, waits.held_by) == ("held", jobs[child.key], jobs[number.key])
    assert f"needs number `{number.key}`" in waits.message
    assert (free.what, free.reason) == ("pending", "Dependency")
    assert free.submitted


def test_held_continuation_holds_what_was_left_to_it(store, scheduler):
    first, rest, last = (Number(value=float(value)) for value in range(3))
    submit(store, scheduler, [first, rest, last], job_cap=2)
    (continuation,) = [job for job, one in scheduler.jobs.items() if one.request.name.startswith("submit")]
    hold(scheduler, continuation)

    found = look(store, scheduler, first, rest)

    assert (found[first.key].what, found[rest.key].what) == ("pending", "held")
    assert found[rest.key].held_by == continuation


def test_job_that_was_released_is_pending_again(store, scheduler):
    leaf = chain(1)
    job = submitted(store, scheduler, leaf)
    hold(scheduler, job)
    assert look(store, scheduler, leaf)[leaf.key].what == "held"

    scheduler.jobs[job].reason, scheduler.jobs[job].priority = "Resources", 1

    assert look(store, scheduler, leaf)[leaf.key].what == "pending"


def test_stage_that_no_leaf_needs_any_more_is_not_lost(store, root, scheduler):
    number = Number(value=0.0)
    inner = Add(parent=number, amount=1)
    leaf, other = Add(parent=inner, amount=2), Add(parent=number, amount=3)
    submit(store, scheduler, [leaf, other])
    run(root, [leaf])
    scheduler.jobs.clear()
    for stage in (number, inner):
        (store.folder(stage) / "manifest.json").unlink()

    states = look(store, scheduler, leaf, other)

    assert [states[stage.key].what for stage in (leaf, inner)] == ["stored", "unneeded"]
    assert [states[stage.key].what for stage in (number, other)] == ["lost", "blocked"], "a leaf still needs it"
    assert {stage.key for stage in Plan.of([leaf, other]).pending(Store(root, allow=ALLOW))} == {number.key, other.key}


def test_stage_that_failed_and_that_no_leaf_needs_any_more_is_not_missed(store, root, scheduler):
    inner = Number(value=0.0)
    leaf = Add(parent=inner, amount=1)
    job = submitted(store, scheduler, leaf)
    run(root, [leaf])
    (store.folder(inner) / "manifest.json").unlink()
    store.record_attempt(inner.key, {**FAILED, "job": job})
    scheduler.jobs.clear()

    assert look(store, scheduler, leaf)[inner.key].what == "unneeded"


def test_leaf_that_another_leaf_reads_is_missed(store, root, scheduler):
    inner = Number(value=0.0)
    leaf = Add(parent=inner, amount=1)
    submitted(store, scheduler, leaf)
    run(root, [leaf])
    scheduler.jobs.clear()
    (store.folder(inner) / "manifest.json").unlink()
    members = {stage.key: Member(stage.name, [p.key for p in stage.parents]) for stage in (inner, leaf)}

    states = states_of(members, store, scheduler, sweep="toys-1", leaves={inner.key, leaf.key})

    assert states[inner.key].what == "lost"


def test_attempt_by_hand_before_the_job_does_not_count_whatever_the_clocks(store, scheduler):
    leaf = chain(1)
    store.prepare()
    store.record_attempt(leaf.key, {**FAILED, "started": "2999"})
    job = submitted(store, scheduler, leaf)
    scheduler.end(job, "TIMEOUT")
    assert look(store, scheduler, leaf)[leaf.key].cause == Cause.TIME_LIMIT

    store.record_attempt(leaf.key, {**FAILED, "started": "2020"})

    assert look(store, scheduler, leaf)[leaf.key].cause == "DataError"


def test_continuation_of_a_clock_that_is_behind_has_what_was_left_to_it(store, scheduler, monkeypatch):
    first, rest, last = (Number(value=float(value)) for value in range(3))
    for job in submit(store, scheduler, [first, rest, last]).submitted.values():
        scheduler.end(job, "TIMEOUT")
    monkeypatch.setattr("harness.slurm.job_log.now", lambda: "2020-01-01T00:00:00.000+00:00")

    submit(store, scheduler, [first, rest, last], job_cap=2)

    found = look(store, scheduler, first, rest)
    assert [found[one.key].what for one in (first, rest)] == ["pending", "pending"]


def test_retry_from_a_clock_that_is_behind_is_the_latest(store, scheduler, monkeypatch):
    leaf = chain(1)
    scheduler.end(submitted(store, scheduler, leaf), "CANCELLED")
    monkeypatch.setattr("harness.slurm.job_log.now", lambda: "2020-01-01T00:00:00.000+00:00")

    second = submitted(store, scheduler, leaf)

    found = look(store, scheduler, leaf)[leaf.key]
    assert (found.what, found.job) == ("pending", second)
    monkeypatch.undo()
    assert submit(store, scheduler, [leaf]).calls == 0


@pytest.mark.parametrize(("code", "signal"), [(os.EX_CANTCREAT, 0), (0, 53)])
def test_job_that_could_write_nothing_is_no_error_of_the_code(store, scheduler, code, signal):
    leaf = chain(1)
    scheduler.end(submitted(store, scheduler, leaf), "FAILED", exit_code=code, signal=signal)

    found = look(store, scheduler, leaf)[leaf.key]

    assert found.cause == Cause.UNWRITABLE
    assert "read-only" in found.message


@pytest.mark.parametrize("line", ['[{"job": "12"', "\x00\x00"])
def test_damaged_ledger_of_another_sweep_stops_no_look(store, scheduler, line):
    leaf = chain(1)
    job = submitted(store, scheduler, leaf)
    folder = JobLog(store.root).open("other")
    (folder / "ledger.jsonl").write_text(f"{line}\n")

    assert look(store, scheduler, leaf)[leaf.key].job == job


def test_attempts_events_and_status_use_one_vocabulary() -> None:
    every = set(get_args(StageState))

    used = [set(get_args(subset)) for subset in (SweepState, EventState, AttemptState)]

    assert set.union(*used) | {"interrupted"} == every
    assert all("failed" in states and "stored" in states for states in used)
