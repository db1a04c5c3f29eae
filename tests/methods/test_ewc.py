"""EWC by hand: rows with the losses w1 and 3 w1 + 2 w2, so their gradients are (1, 0) and (3, 2).

By rows: F = ((1 + 9) / 2, (0 + 4) / 2) = (5, 2). By batches: the batch's gradient is (2, 1), so each draw adds (4, 1).
With w - w_0 = (1, -1), lambda 0.5 and the user's gradient (7, 8): (7, 8) + 2 * 0.5 * (5, -2) = (12, 6), and the penalty
is 0.5 * (5 + 2) = 3.5.
"""

import pytest
import torch
from user_learner import Pair, Safety, UserLearner

from harness.corpora.examples import Role
from harness.defenses.ewc import EWC


def batch_of(*rows):
    return {"rows": torch.tensor(rows), "labels": torch.ones(len(rows), 1, dtype=torch.long)}


ALIGNMENT = batch_of([1.0, 0.0], [3.0, 2.0])
USER = batch_of([7.0, 8.0])


def mean_loss(weights, batch):
    supervised = (batch["labels"] != -100).any(1)
    return ((batch["rows"] @ weights.both) * supervised).sum() / supervised.sum()


def started(fisher, **settings):
    learner, safety = UserLearner(Pair(3, 4), mean_loss), Safety(ALIGNMENT)
    options = {"lamb": 0.5, "fisher_rows": 2, "fisher_batch_size": 2} | settings
    return learner, safety, EWC(fisher=fisher, **options).start(learner, safety, 9)


@pytest.mark.parametrize(("fisher", "expected", "penalty"), [("rows", [12, 6], 3.5), ("batches", [11, 7], 2.5)])
def test_ewc_on_two_weights_writes_the_gradient_computed_by_hand(fisher, expected, penalty):
    learner, _, step = started(fisher)
    step.backward(USER)
    learner.put([torch.tensor([4.0]), torch.tensor([3.0])])

    metrics = step.backward(USER)

    assert learner.written == expected
    assert float(metrics["penalty"]) == penalty
    assert float(metrics["loss"]) == 7 * 4 + 8 * 3


def test_first_step_has_the_user_gradient_alone():
    learner, _, step = started("rows")

    metrics = step.backward(USER)

    assert learner.written == [7, 8], "nothing of the Fisher pass leaks into it"
    assert (float(metrics["penalty"]), float(metrics["drift"])) == (0, 0)


@pytest.mark.parametrize(("fisher", "expected"), [("rows", [5, 2]), ("batches", [12, 3])])
def test_information_of_rows_is_a_mean_and_of_batches_a_sum(fisher, expected):
    learner, safety, step = started(fisher, fisher_rows=6)

    step.backward(USER)

    assert [float(part) for part in step.state_dict()["fisher"]] == expected
    assert safety.roles == [Role.REFUSAL] * 3
    assert all(len(batch["rows"]) == (1 if fisher == "rows" else 2) for batch in learner.seen[:-1])


def test_information_is_found_once_and_not_again_by_a_resumed_run():
    learner, _, step = started("rows")
    step.backward(USER)
    other, safety, resumed = started("rows")

    resumed.load_state_dict(step.state_dict())
    resumed.backward(USER)
    step.backward(USER)

    assert safety.roles == []
    assert other.written == learner.written


def test_ewc_settings_out_of_range_are_reported():
    assert len(EWC(lamb=-1, fisher_batch_size=0).problems()) == 2
    assert "whole batches" in EWC(fisher_rows=7, fisher_batch_size=5).problems()[0].text
    assert not EWC().problems()
