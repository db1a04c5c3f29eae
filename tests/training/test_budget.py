from dataclasses import dataclass
from typing import ClassVar, final

import pytest

from harness.engine.build import build
from harness.engine.spec import describe, rebuild
from harness.engine.stage import Stage
from harness.errors import ConfigError
from harness.training.budget import Budget, Scheduler


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Stub(Stage):
    name: ClassVar[str] = "stub"
    version: ClassVar[int] = 1
    budget: Budget

    def preflight(self):
        return []

    def run(self, ctx):
        pass


def test_budget_defaults_are_in_range():
    assert Budget().problems() == []


def test_budget_out_of_range_reports_every_setting_at_once():
    budget = Budget(
        epochs=0,
        batch_size=0,
        learning_rate=0,
        weight_decay=-1,
        warmup_ratio=1,
        max_grad_norm=0,
        adam_beta1=1,
        adam_beta2=-0.1,
        adam_epsilon=0,
        scheduler=Scheduler.COSINE,
    )

    assert {problem.path for problem in budget.problems()} == {
        "epochs",
        "batch_size",
        "learning_rate",
        "weight_decay",
        "warmup_ratio",
        "max_grad_norm",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
    }


def test_budget_with_numbers_that_are_not_numbers_is_out_of_range():
    assert len(Budget(learning_rate=float("nan"), weight_decay=float("nan")).problems()) == 2


def test_budget_with_warmup_and_constant_schedule_is_refused():
    (problem,) = Budget(warmup_ratio=0.1).problems()

    assert str(problem).startswith("`warmup_ratio`: 0.1 has no effect with the scheduler `constant`")
    assert Budget(warmup_ratio=0.1, scheduler=Scheduler.CONSTANT_WITH_WARMUP).problems() == []


@pytest.mark.parametrize(("rows", "steps"), [(100, 30), (101, 33), (4, 3)])
def test_steps_count_the_short_batch_of_each_epoch(rows, steps):
    assert Budget(epochs=3, batch_size=10).steps(rows) == steps


@pytest.mark.parametrize(("processes", "share"), [(1, 8), (2, 4), (3, 3), (8, 1)])
def test_share_of_a_batch_is_what_the_process_with_most_rows_has(processes, share):
    assert Budget(batch_size=8).share(processes) == share


def test_batch_with_fewer_rows_than_processes_is_refused():
    with pytest.raises(ConfigError, match="`batch_size`: 8 cannot be split over 9 processes"):
        Budget(batch_size=8).share(9)


def test_budget_that_still_cuts_batches_is_told_where_that_is_set():
    with pytest.raises(
        ConfigError, match=r"`finetune.budget.micro_batch_size`: .* `cluster.micro_batch_size=4`"
    ) as found:
        build(Budget, {"micro_batch_size": 1}, path="finetune.budget")

    assert len(found.value.problems) == 1
    assert "Known" not in str(found.value)


def test_stage_that_was_stored_when_budgets_could_cut_batches_is_rebuilt_if_it_did_not():
    stored = {
        **describe(Stub(budget=Budget(epochs=3))),
        "budget": {**describe(Budget(epochs=3)), "micro_batch_size": None},
    }
    cut = {**stored, "budget": {**stored["budget"], "micro_batch_size": 2}}

    assert rebuild(stored, {}.__getitem__, allow=("",)).key == Stub(budget=Budget(epochs=3)).key
    with pytest.raises(ConfigError, match=r"`budget\.micro_batch_size`: the micro-batch size no longer"):
        rebuild(cut, {}.__getitem__, allow=("",))
