"""What can be done about a sweep that was asked for: status, logs, retry, cancel, gc."""

import json
import os
import shutil
import time

import pytest
from fake_scheduler import FakeScheduler
from recorded import Recorded, record

from harness.engine.claim import Claims
from harness.engine.provenance import source_digest
from harness.errors import ConfigError, Interrupted, SchedulerError, StagesFailed, StoreError
from harness.slurm.job_log import JobLog
from harness.slurm.lock import SUBMITTING, submission_lock
from harness.sweep.cancel import Cancelled, cancel
from harness.sweep.gc import collect
from harness.sweep.record import execution_settings_of
from harness.sweep.reporter import NullReporter, SweepPlan
from harness.sweep.retry import retry
from harness.sweep.run import execute
from harness.sweep.status import logs, status

FAILED = {"outcome": "failed", "cause": "RuntimeError", "message": "boom", "traceback": "boom", "seconds": 1.0}


@pytest.fixture
def scheduler(monkeypatch) -> FakeScheduler:
    fake = FakeScheduler()
    monkeypatch.setattr("harness.slurm.settings.SlurmClient", lambda: fake)
    return fake


@pytest.fixture
def sweep(tmp_path) -> Recorded:
    return record(tmp_path / "store", "cluster=slurm")


def submit(sweep: Recorded):
    place = execution_settings_of(sweep.store.read_sweep(sweep.sweep), {})
    planned = SweepPlan.of(sweep.sweep, sweep.plan, sweep.store, place.cluster, cells=1)
    return execute(planned, sweep.plan, sweep.store, place, NullReporter())


class Heard(NullReporter):
    """Keeps what is said beside a run."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def aged(root, days=60):
    for path in [*root.rglob("*")]:
        os.utime(path, (time.time() - days * 86400,) * 2)


def test_status_counts_every_kind_and_everything_that_can_become_of_it(sweep, scheduler):
    submit(sweep)
    sweep.finish(*sweep.stages("base"), *sweep.stages("poison"))
    (align,) = sweep.stages("align")
    sweep.store.record_attempt(
        align.key, {**FAILED, "job": JobLog(sweep.store.root).latest()[align.key].job, "started": "2999"}
    )

    found = status(sweep.store, None, scheduler)

    assert (found.sweep, found.cancelled) == (sweep.sweep, False)
    assert {kind: {what: n for what, n in counts.items() if n} for kind, counts in found.counts.items()} == {
        "base": {"stored": 1},
        "align": {"failed": 1},
        "poison": {"stored": 1},
        "finetune": {"blocked": 1},
        "generate": {"blocked": len(sweep.stages("generate"))},
        "grade": {"blocked": len(sweep.stages("grade"))},
    }
    assert found.over


def test_status_of_a_local_sweep_asks_no_scheduler(tmp_path, scheduler):
    sweep = record(tmp_path / "store")
    sweep.finish(*sweep.stages("base"))
    scheduler.down = True

    found = status(sweep.store, sweep.sweep, scheduler)

    assert found.counts["base"]["stored"] == 1
    assert found.counts["align"]["pending"] == 1


def test_status_of_a_stored_sweep_is_over(tmp_path, scheduler):
    sweep = record(tmp_path / "store")
    sweep.finish(*sweep.plan.stages)

    found = status(sweep.store, None, scheduler)

    assert found.over
    assert found.seconds_left is None
    assert "queue" not in scheduler.asked


def test_time_left_is_that_of_stored_stages_of_the_same_kind_over_those_that_run(tmp_path, scheduler):
    sweep = record(tmp_path / "store", "cluster=slurm")
    *done, left, last = sweep.plan.stages
    sweep.finish(*done)
    assert (left.name, last.name) == ("generate", "grade")
    submit(sweep)
    assert status(sweep.store, None, scheduler).seconds_left is None

    for job in scheduler.jobs.values():
        job.state = "RUNNING"

    assert status(sweep.store, None, scheduler).seconds_left == pytest.approx(4.0)


def test_logs_are_those_of_the_house_and_of_the_job(sweep, scheduler):
    submit(sweep)
    (align,) = sweep.stages("align")
    entry = JobLog(sweep.store.root).latest()[align.key]
    with pytest.raises(StoreError, match="it has never been attempted"):
        list(logs(sweep.store, align.key))
    sweep.store.work(align.key).mkdir()
    (sweep.store.work(align.key) / "log.txt").write_text("ours")
    entry.log(sweep.store.root, "err").write_text("theirs")
    entry.log(sweep.store.root, "out").write_text("")

    found = list(logs(sweep.store, align.key[:8]))

    assert [text for _, text in found] == ["ours", "theirs"]


def test_retry_submits_what_is_not_stored_with_the_changes(sweep, scheduler):
    submit(sweep)
    (base,) = sweep.stages("base")
    sweep.finish(base)
    scheduler.end(JobLog(sweep.store.root).latest()[base.key].job, "COMPLETED")
    for name in list(scheduler.jobs):
        scheduler.end(name, "OUT_OF_MEMORY")
    before = len(scheduler.requests)

    front = Heard()
    retry(sweep.store, None, {"cluster.on_oom": "shrink", "cluster.partition": "big"}, front)

    requests = scheduler.requests[before:]
    assert front.said == []
    assert all(request.parameters["partition"] == "big" for request in requests)
    submitted = {key for request in requests for job in request.jobs for line in job.lines for key in line}
    assert submitted == {stage.key for stage in sweep.plan.stages} - {base.key}
    assert all(set(job.shrink.values()) <= {2} for request in requests for job in request.jobs)


def test_retry_of_a_cancelled_sweep_takes_it_up_again(sweep, scheduler):
    submit(sweep)
    cancel(sweep.store, sweep.sweep, scheduler)

    retry(sweep.store, sweep.sweep, {}, NullReporter())

    assert not JobLog(sweep.store.root).cancelled(sweep.sweep)
    assert scheduler.jobs


def met_damage(sweep):
    """Let a fine-tuning fail for its altered alignment; return the base and the alignment."""
    base, align, poison = (sweep.stages(kind)[0] for kind in ("base", "align", "poison"))
    sweep.finish(base, align, poison)
    (sweep.store.folder(align) / "file").write_text("altered")
    (finetune,) = sweep.stages("finetune")
    sweep.store.record_attempt(finetune.key, {"outcome": "failed", "cause": "DamagedArtifact", "started": "2020"})
    return base, align


def test_retry_sets_damaged_ancestors_of_what_met_them_aside(sweep, scheduler):
    base, align = met_damage(sweep)

    front = Heard()
    retry(sweep.store, None, {}, front)

    (aside,) = (sweep.store.root / "damaged").iterdir()
    assert aside.name.startswith(align.key)
    assert front.said == [f"the artifact of align {align.key} is damaged; moved to {aside}"]
    assert not sweep.store.has(align)
    assert sweep.store.has(base)
    assert align.key in JobLog(sweep.store.root).latest()


def test_retry_sets_damaged_results_aside(sweep, scheduler):
    grade = next(leaf for leaf in sweep.stages("grade"))
    sweep.finish(grade)
    (sweep.store.folder(grade) / "file").write_text("altered")

    front = Heard()
    retry(sweep.store, None, {}, front)

    (aside,) = (sweep.store.root / "damaged").iterdir()
    assert front.said == [f"the artifact of grade {grade.key} is damaged; moved to {aside}"]
    assert grade.key in JobLog(sweep.store.root).latest()


def test_retry_leaves_damage_alone_that_nobody_met(sweep, scheduler):
    base = sweep.stages("base")[0]
    sweep.finish(base)
    (sweep.store.folder(base) / "file").write_text("altered")

    front = Heard()
    retry(sweep.store, None, {}, front)

    assert front.said == []
    assert sweep.store.has(base)


def test_cancel_of_a_local_sweep_needs_no_slurm_that_responds(tmp_path, scheduler):
    local, queued = record(tmp_path / "one"), record(tmp_path / "two", "cluster=slurm")
    scheduler.down = True

    assert cancel(local.store, local.sweep, scheduler) == Cancelled(local.sweep, [], [])
    with pytest.raises(SchedulerError):
        cancel(queued.store, queued.sweep, scheduler)


@pytest.mark.parametrize("content", ["{}", "", "[1"])
def test_retry_sets_what_has_no_readable_manifest_aside_though_nobody_met_it(sweep, scheduler, content):
    base = sweep.stages("base")[0]
    sweep.finish(base)
    (sweep.store.folder(base) / "manifest.json").write_text(content)

    front = Heard()
    retry(sweep.store, None, {}, front)

    (aside,) = (sweep.store.root / "damaged").iterdir()
    assert front.said == [f"the artifact of base {base.key} is damaged; moved to {aside}"]
    assert not sweep.store.has(base)


def test_retry_that_only_rehearses_changes_nothing(sweep, scheduler):
    submit(sweep)
    cancel(sweep.store, sweep.sweep, scheduler)
    _, align = met_damage(sweep)

    front = Heard()
    retry(sweep.store, None, {"cluster.dry_run": True}, front)

    assert front.said == [f"the artifact of align {align.key} is damaged; a retry moves it aside"]
    assert sweep.store.has(align)
    assert JobLog(sweep.store.root).cancelled(sweep.sweep)
    assert not scheduler.jobs


def test_retry_with_a_wrong_change_does_nothing(sweep, scheduler):
    with pytest.raises(ConfigError, match=r"`cluster\.partitio`"):
        retry(sweep.store, None, {"cluster.partitio": "x"}, NullReporter())

    assert not scheduler.requests


def test_retry_of_a_stage_that_is_refused_fails(sweep, scheduler):
    (base,) = sweep.stages("base")
    for _ in range(3):
        sweep.store.record_attempt(base.key, {**FAILED, "code": source_digest(), "started": "2020"})

    with pytest.raises(StagesFailed):
        retry(sweep.store, None, {}, NullReporter())


def test_cancel_ends_the_jobs_of_a_sweep_and_marks_it(sweep, scheduler):
    submit(sweep)
    jobs = set(scheduler.jobs)

    found = cancel(sweep.store, sweep.sweep, scheduler)

    assert set(found.ended) == jobs == set(scheduler.cancelled)
    assert found.spared == []
    assert status(sweep.store, None, scheduler).cancelled


def test_cancel_spares_jobs_that_another_submitted_sweep_needs(sweep, scheduler):
    submit(sweep)
    other = record(sweep.store.root, "cluster=slurm", "attack_ratio=p00")
    submit(other)
    latest = JobLog(sweep.store.root).latest()
    shared = {latest[stage.key].job for kind in ("base", "align") for stage in sweep.stages(kind)}

    found = cancel(sweep.store, sweep.sweep, scheduler)

    assert shared <= set(found.spared)
    assert set(found.ended) >= {latest[stage.key].job for stage in sweep.stages("finetune")}
    assert set(scheduler.jobs) >= shared


def test_cancel_spares_jobs_that_a_sweep_found_in_the_queue_and_ends_them_with_it(sweep, scheduler):
    submit(sweep)
    other = record(sweep.store.root, "cluster=slurm", "title=other")
    assert other.sweep != sweep.sweep
    submit(other)
    jobs = set(scheduler.jobs)

    first = cancel(sweep.store, sweep.sweep, scheduler)
    assert (first.ended, set(first.spared)) == ([], jobs)
    second = cancel(sweep.store, other.sweep, scheduler)

    assert set(second.ended) == jobs
    assert not scheduler.jobs


@pytest.mark.parametrize("how", ["cancelled", "rehearsed"])
def test_cancel_spares_nothing_for_a_sweep_that_asks_for_nothing(sweep, scheduler, how):
    submit(sweep)
    other = record(sweep.store.root, "cluster=slurm", "attack_ratio=p00")
    if how == "cancelled":
        submit(other)
        cancel(other.store, other.sweep, scheduler)
    else:
        JobLog(sweep.store.root).open(other.sweep, dry_run=True)

    assert cancel(sweep.store, sweep.sweep, scheduler).spared == []


def test_cancel_says_when_slurm_does_not_answer(sweep, scheduler):
    submit(sweep)
    scheduler.down = True

    with pytest.raises(SchedulerError):
        cancel(sweep.store, sweep.sweep, scheduler)


def test_gc_removes_what_no_sweep_names_and_only_that(tmp_path, scheduler):
    kept = record(tmp_path / "store", "attack_ratio=p00")
    gone = record(tmp_path / "store", "attack_ratio=p20")
    kept.finish(*kept.plan.stages)
    only = [stage for stage in gone.plan.stages if stage not in kept.plan.stages]
    gone.finish(*only)
    (gone.store.root / "sweeps" / f"{gone.sweep}.json").unlink()
    aged(kept.store.root)

    would = list(collect(kept.store, seconds=86400, dry_run=True, scheduler=scheduler))
    assert all(kept.store.has(stage) for stage in gone.plan.stages)
    done = list(collect(kept.store, seconds=86400, dry_run=False, scheduler=scheduler))

    assert would == done
    assert {garbage.path.name for garbage in done if garbage.what == "artifact"} == {stage.key for stage in only}
    assert all(kept.store.has(stage) for stage in kept.plan.stages)


def test_gc_never_removes_what_is_queued_or_claimed(sweep, scheduler):
    submit(sweep)
    base, poison, align = (sweep.stages(kind)[0] for kind in ("base", "poison", "align"))
    scheduler.jobs = {
        name: job for name, job in scheduler.jobs.items() if name == JobLog(sweep.store.root).latest()[base.key].job
    }
    for stage in (base, poison, align):
        sweep.store.work(stage.key).mkdir()
    (sweep.store.root / "sweeps" / f"{sweep.sweep}.json").unlink()
    aged(sweep.store.root)
    claim = Claims(sweep.store.claims).take(poison.key)
    assert claim is not None

    with claim:
        found = list(collect(sweep.store, seconds=86400, dry_run=False, scheduler=scheduler))

    assert [garbage.path for garbage in found] == [sweep.store.work(align.key)]


def test_gc_keeps_what_a_queued_or_claimed_stage_reads(sweep, scheduler):
    submit(sweep)
    base, align, poison, finetune = (sweep.stages(kind)[0] for kind in ("base", "align", "poison", "finetune"))
    sweep.finish(base, align, poison, finetune)
    scheduler.jobs.clear()
    (sweep.store.root / "sweeps" / f"{sweep.sweep}.json").unlink()
    aged(sweep.store.root)
    claim = Claims(sweep.store.claims).take(_reader(sweep, finetune).key)
    assert claim is not None

    with claim:
        assert not [
            one
            for one in collect(sweep.store, seconds=86400, dry_run=True, scheduler=scheduler)
            if one.what == "artifact"
        ]
    found = [
        one.path
        for one in collect(sweep.store, seconds=86400, dry_run=True, scheduler=scheduler)
        if one.what == "artifact"
    ]

    assert set(found) == {sweep.store.folder(stage) for stage in (base, align, poison, finetune)}


@pytest.mark.parametrize("how", ["asked for", "claimed"])
def test_gc_looks_again_before_it_removes(sweep, scheduler, how):
    base, align = (sweep.stages(kind)[0] for kind in ("base", "align"))
    sweep.finish(base, align)
    path = sweep.store.root / "sweeps" / f"{sweep.sweep}.json"
    asked_for = path.read_text()
    path.unlink()
    aged(sweep.store.root)

    going = collect(sweep.store, seconds=86400, dry_run=False, scheduler=scheduler)
    first = next(going)
    if how == "asked for":
        path.write_text(asked_for)
    else:
        (sweep.store.claims / align.key).touch()
        (sweep.store.claims / base.key).touch()

    assert first.what == "artifact"
    assert [garbage.what for garbage in going if garbage.what == "artifact"] == []
    assert sum(sweep.store.has(stage) for stage in (base, align)) == 1


def test_gc_keeps_everything_that_was_submitted_while_slurm_does_not_answer(sweep, scheduler):
    submit(sweep)
    (base,) = sweep.stages("base")
    sweep.store.work(base.key).mkdir()
    (sweep.store.root / "sweeps" / f"{sweep.sweep}.json").unlink()
    aged(sweep.store.root)
    scheduler.down = True

    assert not list(collect(sweep.store, seconds=86400, dry_run=False, scheduler=scheduler))


def test_record_of_an_earlier_version_protects_its_artifacts_and_asks_for_a_new_run(sweep, scheduler):
    sweep.finish(*sweep.plan.stages)
    path = sweep.store.root / "sweeps" / f"{sweep.sweep}.json"
    old = json.loads(path.read_text())
    for name in ("stages", "place", "predicted", "targets"):
        del old[name]
    path.write_text(json.dumps(old))
    aged(sweep.store.root)

    assert not list(collect(sweep.store, seconds=86400, dry_run=False, scheduler=scheduler))
    with pytest.raises(StoreError, match="Run the sweep's command again"):
        status(sweep.store, None, scheduler)
    with pytest.raises(StoreError, match="Run the sweep's command again"):
        retry(sweep.store, None, {}, NullReporter())


def _reader(sweep, stage):
    return next(one for one in sweep.stages("generate") if stage in one.parents)


def damage(path, how):
    """Damage a file as a full disk, a crash or a bit does."""
    content = path.read_bytes()
    match how:
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "zeros":
            path.write_bytes(content[: len(content) // 2] + bytes(len(content) // 2))
        case "no record":
            path.write_text('{"cells": 7}')
        case "folder":
            path.unlink()
            path.mkdir()


DAMAGES = ("cut", "zeros", "no record", "folder")


def record_file(sweep):
    return sweep.store.root / "sweeps" / f"{sweep.sweep}.json"


def ledger_file(sweep):
    (found,) = sweep.store.root.glob(f"jobs/{sweep.sweep}/*/ledger.jsonl")
    return found


@pytest.fixture
def theirs(sweep) -> Recorded:
    """Somebody else's sweep, which needs nothing of the first."""
    return record(sweep.store.root, "cluster=slurm", "title=theirs", "model.source.steps=251", "attack_ratio=p00")


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_record_of_another_sweep_stops_nothing_but_its_own(sweep, theirs, scheduler, how):
    submit(sweep)
    submit(theirs)
    mine = {entry.job for entry in JobLog(sweep.store.root).entries(sweep.sweep)}
    damage(record_file(theirs), how)

    found = status(sweep.store, sweep.sweep, scheduler)
    assert [theirs.sweep in why for why in found.damage] == [True]
    retry(sweep.store, sweep.sweep, {}, NullReporter())
    told = []
    done = cancel(sweep.store, sweep.sweep, scheduler, notify=told.append)

    assert set(done.ended) == mine
    assert [theirs.sweep in text for text in told] == [True]
    assert {entry.job for entry in JobLog(sweep.store.root).entries(theirs.sweep)} == set(scheduler.jobs)


@pytest.mark.slow
@pytest.mark.parametrize("how", DAMAGES)
def test_cancel_spares_what_a_sweep_submitted_whose_record_is_damaged(sweep, scheduler, how):
    submit(sweep)
    other = record(sweep.store.root, "cluster=slurm", "attack_ratio=p00")
    submit(other)
    latest = JobLog(sweep.store.root).latest()
    shared = {latest[stage.key].job for kind in ("base", "align") for stage in sweep.stages(kind)}
    damage(record_file(other), how)

    found = cancel(sweep.store, sweep.sweep, scheduler)

    assert shared <= set(found.spared)
    assert found.ended


@pytest.mark.slow
@pytest.mark.parametrize("how", DAMAGES)
def test_sweep_whose_own_record_is_damaged_is_cancelled(sweep, scheduler, how):
    submit(sweep)
    jobs = set(scheduler.jobs)
    damage(record_file(sweep), how)

    assert set(cancel(sweep.store, sweep.sweep, scheduler).ended) == jobs


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cut", "zeros", "no record"])
def test_sweep_whose_own_record_is_damaged_is_taken_up_by_its_command(sweep, scheduler, how):
    before = sweep.store.read_sweep(sweep.sweep)
    damage(record_file(sweep), how)
    for verb in (lambda: status(sweep.store, None, scheduler), lambda: retry(sweep.store, None, {}, NullReporter())):
        with pytest.raises(StoreError, match="Run the sweep's command again"):
            verb()

    record(sweep.store.root, "cluster=slurm")

    assert sweep.store.read_sweep(sweep.sweep)["stages"] == before["stages"]
    assert status(sweep.store, None, scheduler).sweep == sweep.sweep


@pytest.mark.slow
@pytest.mark.parametrize("how", DAMAGES)
def test_gc_keeps_what_a_damaged_record_may_name_and_removes_what_lies_aside(sweep, theirs, scheduler, how):
    theirs.finish(*theirs.plan.stages)
    aside = theirs.store.set_aside(theirs.plan.stages[0])
    damage(record_file(theirs), how)
    aged(sweep.store.root)
    told = []

    found = list(collect(sweep.store, seconds=86400, dry_run=False, scheduler=scheduler, notify=told.append))

    assert [garbage.path for garbage in found] == [aside]
    assert all(theirs.store.has(stage) for stage in theirs.plan.stages[1:])
    assert [theirs.sweep in text and "is kept" in text for text in told] == [True]


def test_gc_keeps_what_a_queued_stage_reads_whose_spec_is_damaged(sweep, scheduler):
    submit(sweep)
    base, align, poison = (sweep.stages(kind)[0] for kind in ("base", "align", "poison"))
    sweep.finish(base, align, poison)
    record_file(sweep).unlink()
    for stage in sweep.stages("finetune"):
        damage(sweep.store.root / "specs" / f"{stage.key}.json", "cut")
    aged(sweep.store.root)
    told = []

    assert not list(collect(sweep.store, seconds=86400, dry_run=False, scheduler=scheduler, notify=told.append))
    assert told


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cut", "zeros", "folder"])
def test_damaged_ledger_of_another_sweep_stops_nothing(sweep, theirs, scheduler, how):
    submit(sweep)
    submit(theirs)
    mine = {entry.job for entry in JobLog(sweep.store.root).entries(sweep.sweep)}
    path = ledger_file(theirs)
    if how == "folder":
        damage(path, how)
    else:
        first, *rest = path.read_bytes().splitlines(keepends=True)
        cut = first[: len(first) // 2] + (bytes(20) if how == "zeros" else b"")
        path.write_bytes(b"".join([cut, b"\n", *rest]))

    found = status(sweep.store, sweep.sweep, scheduler)
    assert [str(path) in why for why in found.damage] == [True]
    retry(sweep.store, sweep.sweep, {}, NullReporter())
    assert list(collect(sweep.store, seconds=0, dry_run=True, scheduler=scheduler)) == []
    done = cancel(sweep.store, sweep.sweep, scheduler)

    assert set(done.ended) == mine
    assert set(cancel(sweep.store, theirs.sweep, scheduler).ended) == set(scheduler.cancelled) - mine
    assert not scheduler.jobs, "also those that no ledger names are ended with their sweep"


@pytest.mark.slow
def test_gc_removes_nothing_while_a_job_is_in_the_queue_that_no_ledger_names(sweep, scheduler):
    submit(sweep)
    base = sweep.stages("base")[0]
    sweep.finish(base)
    record_file(sweep).unlink()
    damage(ledger_file(sweep), "folder")
    aged(sweep.store.root)
    told = []

    assert not list(collect(sweep.store, seconds=86400, dry_run=False, scheduler=scheduler, notify=told.append))
    assert any("No job log lists" in text for text in told)
    for job in list(scheduler.jobs):
        scheduler.end(job, "CANCELLED")
    assert base.key in {
        garbage.path.name for garbage in collect(sweep.store, seconds=86400, dry_run=False, scheduler=scheduler)
    }


def interrupt(sweep, scheduler):
    """Let a submission die when the scheduler has taken its second request and before it hears of that."""

    def die(_):
        if len(scheduler.requests) == 2:
            raise KeyboardInterrupt

    scheduler.after_submit = die
    with pytest.raises(Interrupted):
        submit(sweep)
    scheduler.after_submit = lambda _: None


@pytest.mark.slow
def test_job_of_an_interrupted_submission_is_counted_and_ended_by_cancel(sweep, theirs, scheduler):
    submit(theirs)
    others = set(scheduler.jobs)
    scheduler.requests.clear()
    interrupt(sweep, scheduler)
    known = {entry.job for entry in JobLog(sweep.store.root).entries()}
    (stray,) = set(scheduler.jobs) - known

    assert list(status(sweep.store, sweep.sweep, scheduler).strays) == [stray]
    assert list(status(sweep.store, theirs.sweep, scheduler).strays) == []
    done = cancel(sweep.store, sweep.sweep, scheduler)

    assert stray in done.ended
    assert set(scheduler.jobs) == others


def test_job_whose_answer_may_be_on_its_way_is_no_stray(sweep, scheduler):
    interrupt(sweep, scheduler)

    with submission_lock(sweep.store, lambda _: None):
        assert list(status(sweep.store, sweep.sweep, scheduler).strays) == []


def no_new_file(store):
    """Let the store take no new claim, as a full or read-only disk does."""
    store.claims.rmdir()
    store.claims.write_text("")


def test_cancel_needs_no_new_file(sweep, scheduler):
    submit(sweep)
    jobs = set(scheduler.jobs)
    no_new_file(sweep.store)
    (sweep.store.root / "jobs" / sweep.sweep / "cancelled").symlink_to("nowhere/there")
    told = []

    done = cancel(sweep.store, sweep.sweep, scheduler, notify=told.append)

    assert set(done.ended) == jobs
    assert ["harness cancel` again" in text for text in told] == [True]


@pytest.mark.parametrize("dry_run", [True, False])
def test_gc_needs_no_new_file(sweep, scheduler, dry_run):
    sweep.finish(*sweep.plan.stages)
    record_file(sweep).unlink()
    aged(sweep.store.root)
    no_new_file(sweep.store)

    found = list(collect(sweep.store, seconds=86400, dry_run=dry_run, scheduler=scheduler))

    assert {garbage.path.name for garbage in found if garbage.what == "artifact"} == {
        stage.key for stage in sweep.plan.stages
    }
    assert all(sweep.store.has(stage) == dry_run for stage in sweep.plan.stages)


def test_gc_takes_its_turn_as_soon_as_there_is_room(sweep, scheduler):
    sweep.finish(*sweep.plan.stages)
    record_file(sweep).unlink()
    aged(sweep.store.root)
    no_new_file(sweep.store)
    going = collect(sweep.store, seconds=86400, dry_run=False, scheduler=scheduler)
    next(going)
    sweep.store.claims.unlink()
    next(going)

    assert (sweep.store.claims / SUBMITTING).exists()
    list(going)
    assert not (sweep.store.claims / SUBMITTING).exists()


def test_who_waits_for_a_turn_is_told_who_has_it(sweep, scheduler, monkeypatch):
    monkeypatch.setattr("harness.slurm.lock.NOTIFY_SECONDS", 0.0)
    claim = Claims(sweep.store.claims).take(SUBMITTING)
    monkeypatch.setattr("harness.slurm.lock.time.sleep", lambda _: claim.release())
    told = []

    list(collect(sweep.store, seconds=0, dry_run=True, scheduler=scheduler, notify=told.append))

    assert [f"process {os.getpid()} on" in text for text in told] == [True]


@pytest.mark.slow
def test_status_and_retry_agree_on_what_is_lost(sweep, scheduler):
    submit(sweep)
    sweep.finish(*sweep.plan.stages)
    scheduler.jobs.clear()
    for stage in sweep.stages("generate"):
        shutil.rmtree(sweep.store.folder(stage))

    found = status(sweep.store, None, scheduler)

    assert found.counts["generate"]["lost"] == 0
    assert found.counts["generate"]["unneeded"] == len(sweep.stages("generate"))
    calls = len(scheduler.requests)
    retry(sweep.store, None, {}, NullReporter())
    assert len(scheduler.requests) == calls


def test_sweep_whose_jobs_slurm_holds_is_over_until_they_are_released(sweep, scheduler):
    submit(sweep)
    for job in scheduler.jobs.values():
        job.reason, job.priority = ("JobHeldAdmin", 0) if not job.request.after_ok else ("Dependency", 1)

    found = status(sweep.store, None, scheduler)

    assert {state.what for state in found.states.values()} == {"held"}
    assert found.over
    assert all(f"scontrol release {state.held_by}" in state.message for state in found.states.values())


def test_estimate_passes_over_a_manifest_that_cannot_be_read(tmp_path, scheduler):
    sweep = record(tmp_path / "store", "cluster=slurm")
    *done, _, _ = sweep.plan.stages
    sweep.finish(*done)
    submit(sweep)
    for job in scheduler.jobs.values():
        job.state = "RUNNING"
    for stage in done:
        if stage.name in ("generate", "grade"):
            damage(sweep.store.folder(stage) / "manifest.json", "cut")

    assert status(sweep.store, None, scheduler).seconds_left is None


def test_status_names_manifests_and_specs_that_are_damaged(sweep, scheduler):
    base, align = (sweep.stages(kind)[0] for kind in ("base", "align"))
    sweep.finish(base, align)
    damage(sweep.store.folder(base) / "manifest.json", "cut")
    (finetune,) = sweep.stages("finetune")
    damage(sweep.store.root / "specs" / f"{finetune.key}.json", "zeros")

    found = status(sweep.store, None, scheduler)

    assert [base.key in found.damage[0], finetune.key in found.damage[1]] == [True, True]
    assert len(found.damage) == 2
    assert not status(sweep.store, None, scheduler, thorough=False).damage
