import json
import logging
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from toys import ALLOW, Add, Mix, Number, Silent, chain, heedful, run, runs, wait_for

from harness.engine.claim import Claims
from harness.engine.plan import Plan
from harness.engine.stage import lineage
from harness.engine.store import Store
from harness.errors import Interrupted
from harness.execution.attempt import WorkerContext, attempt
from harness.local.workers import ProcessPool, WorkerConfig
from harness.tracking.jsonl import Jsonl

SPAWN = multiprocessing.get_context("spawn")


def trouble(root: Path, amount: float, what: str) -> Path:
    root.mkdir(exist_ok=True)
    path = root / f"trouble-{amount}"
    path.write_text(what)
    return path


def attempts(store: Store, stage) -> list[str]:
    return [record["outcome"] for record in store.attempts(stage.key)]


def grid() -> list:
    """Return 12 leaves over 4 shared parents and one base."""
    base = Number(value=1)
    return [
        Mix(left=Add(parent=base, amount=left), right=Add(parent=base, amount=10 + right))
        for left in range(4)
        for right in range(3)
    ]


def run_grid(root: Path, flipped: bool, report: Path) -> None:
    leaves = grid()
    outcome = run(root, leaves[::-1] if flipped else leaves)
    report.write_text(json.dumps({"executed": outcome.executed, "stored": outcome.stored}))


def run_chain(root: Path, workers: int = 1) -> None:
    run(root, [chain(3)], workers=workers)


def test_run_that_fails_in_the_middle_resumes_there(root, store) -> None:
    leaf = chain(3)
    base, middle = leaf.parent.parent, leaf.parent
    repair = trouble(root, 1, "data")

    broken = run(root, [leaf])
    repair.unlink()
    mended = run(root, [leaf])
    repeated = run(root, [leaf])

    assert broken.executed == (base.key,)
    assert broken.failed[middle.key].message == "`rows.json` has 3 rows; expected 5"
    assert (broken.failed[middle.key].cause, broken.failed[middle.key].trace) == ("DataError", "")
    assert broken.blocked == {leaf.key: middle.key}
    assert not broken.complete
    assert (mended.executed, mended.stored) == ((middle.key, leaf.key), (base.key,))
    assert (repeated.executed, len(repeated.stored), repeated.complete) == ((), 3, True)
    assert runs(root) == {"number:0.0": 1, "add:1": 2, "add:2": 1}
    assert attempts(store, middle) == ["failed", "executed"]


def test_run_with_a_bug_keeps_the_traceback_and_goes_on_with_unrelated_stages(root, store) -> None:
    base = Number(value=1)
    broken, sound = Add(parent=base, amount=1), Add(parent=base, amount=2)
    trouble(root, 1, "bug")

    outcome = run(root, [broken, sound])

    assert outcome.executed == (base.key, sound.key)
    assert 'raise RuntimeError("a bug")' in outcome.failed[broken.key].trace
    (record,) = store.attempts(broken.key)
    assert (record["cause"], record["message"], record["pid"]) == ("RuntimeError", "RuntimeError: a bug", os.getpid())
    assert 'raise RuntimeError("a bug")' in record["traceback"]
    assert 'raise RuntimeError("a bug")' in (store.work(broken.key) / "log.txt").read_text()


def test_run_tells_every_event_with_progress(root) -> None:
    leaf = chain(3)
    trouble(root, 1, "data")
    events: list = []

    run(root, [leaf], on_event=events.append)
    run(root, [leaf], on_event=events.append)

    told = [(event.what, event.stage.name, event.done) for event in events]
    assert told == [
        ("running", "number", 0),
        ("executed", "number", 1),
        ("running", "add", 1),
        ("failed", "add", 3),
        ("blocked", "add", 3),
        ("stored", "number", 1),
        ("running", "add", 1),
        ("failed", "add", 3),
        ("blocked", "add", 3),
    ]
    assert {event.total for event in events} == {3}


def test_run_keeps_memory_between_stages_and_drops_it_after_a_failure(root, store) -> None:
    base = Number(value=0)
    leaves = [Add(parent=base, amount=amount) for amount in (1, 2, 3, 4)]
    trouble(root, 3, "data")

    run(root, leaves)

    assert [store.manifest(leaves[i].key).facts["seen"] for i in (0, 1, 3)] == [1, 2, 1]


def test_run_removes_checkpoints_and_keeps_log_and_curve(root, store) -> None:
    leaf = Number(value=1)
    logging.getLogger("harness").setLevel(logging.INFO)

    run(root, [leaf], tracker=Jsonl())

    assert [path.name for path in store.work(leaf.key).iterdir()] == ["log.txt"]
    assert f"number {leaf.key}: finished" in (store.work(leaf.key) / "log.txt").read_text()


def test_attempt_without_parent_fails_for_that_reason(root, store) -> None:
    stage = chain(2)
    store.prepare()

    result = attempt(stage, WorkerContext(store=store, claims=Claims(store.claims), tracker=Jsonl()))

    assert (result.outcome, result.cause) == ("failed", "missing parent")
    assert f"number `{stage.parent.key}`" in result.message
    assert not runs(root)


def test_stage_that_another_host_stored_is_found_though_this_one_remembers_that_it_was_missing(
    root, store, monkeypatch
) -> None:
    leaf = chain(3)
    others = [stage for stage in lineage((leaf,)) if stage is not leaf]
    folders = {store.folder(stage).parent for stage in others}
    run(root, others)
    last = max(path.stat().st_mtime_ns for path in folders)
    true = Store.has

    def remembered(self, stage):
        """Forget that a stage was missing once its folder was changed from here, as a host does on NFS."""
        if stage in others and self.folder(stage).parent.stat().st_mtime_ns <= last:
            return False
        return true(self, stage)

    monkeypatch.setattr(Store, "has", remembered)
    before = runs(root)
    outcome = run(root, [leaf])

    assert outcome.executed == (leaf.key,)
    assert not outcome.failed
    assert runs(root) - before == {"add:2": 1}


def test_attempt_with_damaged_parent_fails_for_that_reason(root) -> None:
    stage = chain(2)
    run(root, [stage.parent])
    fresh = Store(root, allow=ALLOW)
    (fresh.folder(stage.parent) / "sub folder" / "number.txt").write_text("7.0")

    result = attempt(stage, WorkerContext(store=fresh, claims=Claims(fresh.claims), tracker=Jsonl()))

    assert (result.outcome, result.cause, result.trace) == ("failed", "DamagedArtifact", "")


def test_attempt_that_loses_its_claim_commits_nothing(root, store, monkeypatch) -> None:
    stage = Number(value=1)
    store.prepare()
    monkeypatch.setattr("harness.engine.claim.Claim.held", lambda self: False)

    result = attempt(stage, WorkerContext(store=store, claims=Claims(store.claims), tracker=Jsonl()))

    assert result.outcome == "busy"
    assert not store.folder(stage).exists()
    assert list(store.claims.iterdir()) == []


def test_run_interrupted_records_it_and_goes_on_later(root, store) -> None:
    leaf = chain(3)
    repair = trouble(root, 1, "interrupt")

    with pytest.raises(Interrupted, match="1 of 3 stages are settled"):
        run(root, [leaf])
    repair.unlink()
    outcome = run(root, [leaf])

    assert attempts(store, leaf.parent) == ["interrupted", "executed"]
    assert len(outcome.executed) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_run_killed_in_a_stage_leaves_nothing_half_and_resumes_at_once(root, store, workers) -> None:
    leaf = chain(3)
    repair = trouble(root, 1, "hold")
    process = SPAWN.Process(target=run_chain, args=(root, workers))
    process.start()
    wait_for((root / "holding-1").exists)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    seen = store.has(leaf.parent), store.folder(leaf.parent).exists()
    repair.unlink()

    outcome = run(root, [leaf])

    assert seen == (False, False)
    assert outcome.complete
    assert Store(root).path(leaf)
    assert list(store.claims.iterdir()) == []


def test_run_of_two_processes_executes_every_stage_once(root, tmp_path) -> None:
    reports = [tmp_path / "a.json", tmp_path / "b.json"]
    processes = [SPAWN.Process(target=run_grid, args=(root, i == 1, report)) for i, report in enumerate(reports)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    outcomes = [json.loads(report.read_text()) for report in reports]
    keys = {stage.key for stage in Plan.of(grid()).stages}

    assert sorted(outcomes[0]["executed"] + outcomes[1]["executed"]) == sorted(keys)
    for outcome in outcomes:
        assert {*outcome["executed"], *outcome["stored"]} == keys
    assert runs(root) == {"number:1": 1, **{f"add:{n}": 1 for n in (0, 1, 2, 3, 10, 11, 12)}, "mix": 12}


def test_run_beside_a_busy_process_does_the_rest_and_waits_for_its_result(root) -> None:
    repair = trouble(root, 1, "hold")
    process = SPAWN.Process(target=run_chain, args=(root,))
    process.start()
    wait_for((root / "holding-1").exists)
    leaf, other = chain(3), Number(value=7)
    events: list = []

    def on_event(event) -> None:
        events.append((event.what, event.stage.key))
        if event.what == "executed" and event.stage == other:
            repair.unlink()

    outcome = run(root, [leaf, other], on_event=on_event)
    process.join()

    assert ("busy", leaf.parent.key) in events
    assert events.index(("busy", leaf.parent.key)) < events.index(("executed", other.key))
    assert {leaf.parent.parent.key, leaf.parent.key} <= set(outcome.stored)
    assert outcome.complete
    assert set(runs(root).values()) == {1}


def mark(path: Path) -> None:
    with path.open("a") as stream:
        stream.write(f"{os.getpid()}\n")


class Mark:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> None:
        mark(self.path)


def test_run_with_workers_runs_in_processes_that_are_set_up_once_and_keep_memory(root, store, tmp_path) -> None:
    leaves = [Add(parent=Number(value=1), amount=amount) for amount in range(6)]

    outcome = run(root, leaves, workers=2, initialize=Mark(tmp_path / "pids"))

    pids = {store.manifest(leaf.key).facts["pid"] for leaf in leaves}
    seen = [store.manifest(leaf.key).facts["seen"] for leaf in leaves]
    assert len(outcome.executed) == 7
    assert os.getpid() not in pids
    assert pids <= set(map(int, (tmp_path / "pids").read_text().split()))
    assert len((tmp_path / "pids").read_text().split()) <= 2
    assert max(seen) >= 3


def test_run_with_a_worker_that_dies_fails_that_stage_only(root) -> None:
    base = Number(value=1)
    leaves = [Add(parent=base, amount=amount) for amount in range(4)]
    repair = trouble(root, 1, "kill")

    outcome = run(root, leaves, workers=2)
    repair.unlink()
    again = run(root, leaves, workers=1)

    assert outcome.failed[leaves[1].key].cause == "killed"
    assert "exit code -9" in outcome.failed[leaves[1].key].message
    assert len(outcome.executed) == 4
    assert again.executed == (leaves[1].key,)


def test_worker_that_dies_while_it_is_idle_is_replaced(root, store) -> None:
    store.prepare()
    config = WorkerConfig(root=root, allow=ALLOW, tracker=Silent(), device="cpu", initialize=None, processes={})
    store.register([Number(value=1), Number(value=2)])
    pool = ProcessPool([None], config)
    pool.begin(Number(value=1), 0)
    (first,) = pool.ended(None)
    os.kill(pool._workers[0].running.process.pid, signal.SIGKILL)
    pool._workers[0].running.process.join()

    pool.begin(Number(value=2), 0)
    (second,) = pool.ended(None)
    pool.stop()

    assert (first.outcome, second.outcome) == ("executed", "executed")


def interrupted(root: Path, result: Path) -> None:
    heedful()
    try:
        run_chain(root, 2)
    except Interrupted as error:
        result.write_text(str(error))


def test_run_with_workers_ends_cleanly_on_ctrl_c(root, store, tmp_path) -> None:
    trouble(root, 1, "hold")
    process = SPAWN.Process(target=interrupted, args=(root, tmp_path / "result"))
    process.start()
    wait_for((root / "holding-1").exists)
    os.kill(process.pid, signal.SIGINT)
    process.join(20)

    assert process.exitcode == 0
    assert "1 of 3 stages are settled" in (tmp_path / "result").read_text()
    assert attempts(store, chain(3).parent) == ["interrupted"]
    assert list(store.claims.iterdir()) == []
