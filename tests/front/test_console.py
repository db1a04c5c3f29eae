"""What the command line says of the end of a run."""

from types import SimpleNamespace
from typing import ClassVar

import pytest
from recorded import record

from harness.cli.progress import RunPrinter
from harness.errors import StoreError
from harness.execution.executor import Event, Failure, Outcome
from harness.execution.judge_service import JudgeService
from harness.sweep.reporter import NullReporter, SweepPlan
from harness.sweep.run import execute
from harness.tracking.jsonl import Jsonl

REFUSED = Failure(kind="align", cause="refused", message="failed 3 times with the same traceback")
FULL = Failure(kind="align", cause="StoreError", message="The disk or quota is full at `store`.")


@pytest.fixture
def sweep(tmp_path):
    return record(tmp_path / "store")


def planned(sweep, cluster=None):
    return SweepPlan.of(sweep.sweep, sweep.plan, sweep.store, cluster, cells=1)


def test_refusal_is_told_with_its_reason_where_nothing_else_is_submitted(sweep, capsys):
    printer = RunPrinter()

    printer.finished(planned(sweep, CLUSTER), Outcome(failed={"0123": REFUSED}))

    printed = " ".join(capsys.readouterr().out.split())
    assert "failed align 0123: failed 3 times with the same traceback" in printed


def test_failure_that_was_told_when_it_happened_is_not_told_again(sweep, capsys):
    (align,) = sweep.stages("align")
    printer = RunPrinter()

    printer.event(Event(what="failed", stage=align, done=1, total=9, message="`rows.json` has 3 rows"))
    failure = Failure(kind="align", cause="DataError", message="`rows.json` has 3 rows")
    printer.finished(planned(sweep, CLUSTER), Outcome(failed={align.key: failure}))

    assert capsys.readouterr().out.count("`rows.json` has 3 rows") == 1


class Ends:
    """A cluster whose executor ends as it is told to."""

    wait = False
    vllm_python = None
    judge_service: ClassVar = JudgeService()
    gpus: ClassVar = {}

    def __init__(self, **failed):
        self._outcome = Outcome(failed=failed)

    def executor(self, **_):
        return SimpleNamespace(run=lambda plan, store: self._outcome)


CLUSTER = Ends()


def test_run_that_nothing_stopped_but_the_store_ends_with_the_store_error(sweep):
    cluster = Ends(a=FULL, b=FULL)
    place = SimpleNamespace(cluster=cluster, tracker=Jsonl())

    with pytest.raises(StoreError, match="disk or quota is full at `store`") as caught:
        execute(planned(sweep, cluster), sweep.plan, sweep.store, place, NullReporter())

    assert caught.value.exit_code == 2


def test_run_in_which_something_else_failed_too_returns_what_did(sweep):
    cluster = Ends(a=FULL, b=REFUSED)
    place = SimpleNamespace(cluster=cluster, tracker=Jsonl())

    outcome = execute(planned(sweep, cluster), sweep.plan, sweep.store, place, NullReporter())

    assert set(outcome.failed) == {"a", "b"}
