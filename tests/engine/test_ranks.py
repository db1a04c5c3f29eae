import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from crowd import Crowd, is_gone
from toys import ALLOW, Number, Silent, executor, heedful, wait_for

from harness.engine.claim import Claims
from harness.engine.plan import Plan
from harness.engine.store import Store
from harness.errors import Interrupted
from harness.execution.attempt import WorkerContext, attempt
from harness.execution.ranks import Processes
from harness.tracking.jsonl import Jsonl

ALLOWED = (*ALLOW, "crowd.")
TWO = Processes(count=2)
SPAWN = multiprocessing.get_context("spawn")


class Mark:
    """Leaves a line for each process that it initializes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> None:
        with self.path.open("a") as stream:
            stream.write(f"{os.getpid()}\n")


@pytest.fixture
def store(root: Path) -> Store:
    found = Store(root, allow=ALLOWED)
    found.prepare()
    return found


def trouble(store: Store, rank: int, what: str) -> None:
    (store.root / f"trouble-{rank}").write_text(what)


def shared(store: Store, stage=None, processes: Processes = TWO, **options):
    options.setdefault("tracker", Silent())
    context = WorkerContext(
        store=store, claims=Claims(store.claims), processes={"crowd": processes, "number": processes}, **options
    )
    return attempt(stage or Crowd(), context)


def pid_of(store: Store, rank: int) -> int:
    return int((store.root / f"pid-{rank}").read_text())


def test_shared_stage_is_run_by_every_rank_and_told_by_the_first(store, tmp_path) -> None:
    stage = Crowd()

    result = shared(store, tracker=Jsonl(), device="cuda", shrink=2, initialize=Mark(tmp_path / "pids"))

    manifest = store.manifest(stage.key)
    assert (result.outcome, result.message) == ("executed", "")
    assert (store.path(stage) / "world.txt").read_text() == "2"
    assert manifest.facts == {"rank": 0, "sharding": "ddp", "shrink": 2, "device": "cuda:0"}
    told = {name: manifest.provenance[name] for name in ("processes", "nodes", "sharding", "device")}
    assert told == {"processes": 2, "nodes": 1, "sharding": "ddp", "device": "cuda"}
    ranks = {pid_of(store, 0), pid_of(store, 1)}
    assert os.getpid() not in ranks
    assert ranks == set(map(int, (tmp_path / "pids").read_text().split()))
    assert sorted(path.name for path in store.work(stage.key).iterdir()) == ["curve.jsonl", "log.txt"]
    assert (store.work(stage.key) / "curve.jsonl").read_text().count("\n") == 1
    assert list(store.claims.iterdir()) == []


def test_stage_in_one_process_says_nothing_of_processes(store) -> None:
    stage = Crowd()

    shared(store, processes=Processes())

    assert not {"processes", "nodes", "sharding"} & set(store.manifest(stage.key).provenance)
    assert pid_of(store, 0) == os.getpid()


def test_stage_that_cannot_be_shared_runs_in_one_process(store) -> None:
    stage = Number(value=1)

    assert shared(store, stage).outcome == "executed"
    assert "processes" not in store.manifest(stage.key).provenance


def test_processes_out_of_range_are_named() -> None:
    assert len(Processes(count=0, nodes=-1, sharding="zero").problems()) == 3


@pytest.mark.slow
def test_mistake_in_a_rank_is_the_users_to_mend(store) -> None:
    trouble(store, 0, "data")
    trouble(store, 1, "hold")

    result = shared(store)

    assert (result.outcome, result.cause, result.trace) == ("failed", "DataError", "")
    assert result.message == "`rows.json` has 3 rows; expected 5"
    assert not store.has(Crowd())
    (record,) = store.attempts(Crowd().key)
    assert (record["cause"], record["pid"]) == ("DataError", os.getpid())
    wait_for(lambda: is_gone(pid_of(store, 1)))


@pytest.mark.slow
def test_bug_in_another_rank_keeps_its_traceback_and_ends_the_first(store) -> None:
    trouble(store, 0, "hold")
    trouble(store, 1, "bug")

    result = shared(store)

    assert (result.cause, result.message) == ("RuntimeError", "RuntimeError: a bug")
    assert 'raise RuntimeError("a bug")' in result.trace
    assert "torch.distributed" not in result.trace
    wait_for(lambda: is_gone(pid_of(store, 0)))


@pytest.mark.slow
def test_rank_that_is_killed_is_told_and_not_what_came_of_it(store) -> None:
    trouble(store, 0, "follow")
    trouble(store, 1, "kill")

    result = shared(store)

    assert (result.outcome, result.cause, result.trace) == ("failed", "killed", "")
    assert "exit code -9" in result.message
    wait_for(lambda: is_gone(pid_of(store, 0)))


@pytest.mark.slow
def test_shared_stage_that_is_asked_to_stop_stops(store) -> None:
    trouble(store, 0, "hold")

    result = shared(store, stop=(store.root / "holding-0").exists)

    assert (result.outcome, result.message) == ("stopped", "in the middle")
    assert [record["outcome"] for record in store.attempts(Crowd().key)] == ["stopped"]
    assert not store.has(Crowd())
    assert list(store.claims.iterdir()) == []


def supervise(root: Path) -> None:
    heedful()
    try:
        executor(processes={"crowd": TWO}).run(Plan.of([Crowd()]), Store(root, allow=ALLOWED))
    except Interrupted:
        os._exit(3)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 3)])
def test_ranks_end_with_their_supervisor(number, code, store) -> None:
    trouble(store, 0, "hold")
    trouble(store, 1, "hold")
    supervisor = SPAWN.Process(target=supervise, args=(store.root,))
    supervisor.start()
    wait_for(lambda: (store.root / "holding-0").exists() and (store.root / "holding-1").exists(), 60)

    os.kill(supervisor.pid, number)
    supervisor.join(20)

    assert supervisor.exitcode == code
    wait_for(lambda: is_gone(pid_of(store, 0)) and is_gone(pid_of(store, 1)))
