import pytest

from harness.errors import ConfigError, ModelError
from harness.training.budget import Budget, Scheduler


def test_budget_defaults_are_in_range():
    assert Budget().problems() == []


def test_budget_out_of_range_reports_every_setting_at_once():
    budget = Budget(
        epochs=0,
        batch_size=0,
        micro_batch_size=0,
        learning_rate=0,
        weight_decay=-1,
        warmup_ratio=1,
        max_grad_norm=0,
        adam_beta1=1,
        adam_beta2=-0.1,
        adam_epsilon=0,
        scheduler=Scheduler.COSINE,
    )

    assert {problem.split(":")[0] for problem in budget.problems()} == {
        f"`{name}`"
        for name in (
            "epochs",
            "batch_size",
            "micro_batch_size",
            "learning_rate",
            "weight_decay",
            "warmup_ratio",
            "max_grad_norm",
            "adam_beta1",
            "adam_beta2",
            "adam_epsilon",
        )
    }


def test_budget_with_numbers_that_are_not_numbers_is_out_of_range():
    assert len(Budget(learning_rate=float("nan"), weight_decay=float("nan")).problems()) == 2


def test_budget_with_warmup_and_constant_schedule_is_refused():
    (problem,) = Budget(warmup_ratio=0.1).problems()

    assert problem.startswith("`warmup_ratio`: 0.1 has no effect with the scheduler `constant`")
    assert Budget(warmup_ratio=0.1, scheduler=Scheduler.CONSTANT_WITH_WARMUP).problems() == []


def test_budget_with_micro_batches_that_do_not_fit_is_refused():
    assert Budget(batch_size=10, micro_batch_size=4).problems() == [
        "`micro_batch_size`: 4 does not divide `batch_size` 10"
    ]


@pytest.mark.parametrize(("rows", "steps"), [(100, 30), (101, 33), (4, 3)])
def test_steps_count_the_short_batch_of_each_epoch(rows, steps):
    assert Budget(epochs=3, batch_size=10).steps(rows) == steps


@pytest.mark.parametrize(("micro", "processes", "expected"), [(None, 1, 1), (None, 4, 1), (2, 1, 4), (2, 2, 2)])
def test_micro_batches_fill_the_global_batch(micro, processes, expected):
    assert Budget(batch_size=8, micro_batch_size=micro).micro_batches(processes) == expected


@pytest.mark.parametrize(("micro", "processes"), [(None, 3), (2, 8), (None, 16)])
def test_micro_batches_that_processes_cannot_share_are_refused(micro, processes):
    with pytest.raises(ConfigError, match=f"cannot be shared by {processes} processes"):
        Budget(batch_size=8, micro_batch_size=micro).micro_batches(processes)


@pytest.mark.parametrize(
    ("micro", "processes", "shrink", "expected"),
    [
        (None, 1, 1, (10, 1)),
        (None, 1, 2, (5, 2)),
        (None, 1, 4, (2, 5)),
        (None, 1, 8, (1, 10)),
        (None, 2, 4, (1, 5)),
        (5, 1, 2, (1, 10)),
    ],
)
def test_portions_that_are_shrunk_divide_the_batch_evenly(micro, processes, shrink, expected):
    assert Budget(batch_size=10, micro_batch_size=micro).portions(processes, shrink) == expected


def test_portions_of_one_row_cannot_be_shrunk():
    with pytest.raises(ModelError, match="a micro-batch of 1 cannot be divided by 2"):
        Budget(batch_size=10, micro_batch_size=1).portions(1, 2)
