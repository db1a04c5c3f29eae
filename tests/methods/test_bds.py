"""BDS by hand, with two examples of one token each: l = (1, 3) and logits (0.1, 0.1), so p = (1, 1).

The mean of p_i l_i over the batch is d/dlogit_i = s_i (l_i - sum of s l) = 0.5 (1 - 2) = -0.5 and 0.5, since the batch
has both examples and N s_i / 2 = s_i. The first step of AdamW without decay has the length of the learning rate, 0.005:
the logits become (0.105, 0.095), and the weights 2 softmax = 2 / (1 + exp(-+0.01)) = 1.005000 and 0.995000.

The loss of an example: at each position two tokens have the logits (w, 0) and the target is the first, so a token costs
log(1 + exp(-w)). An example's loss is that, however many tokens it has; with the labels of the other token it is
log(1 + exp(w)), and the gradients are -sigmoid(-w) and sigmoid(w).
"""

import math

import pytest
import torch
from torch import nn
from user_learner import CutLearner, Safety

from harness.corpora.encode import PLACES
from harness.corpora.examples import Role
from harness.defenses.bds import BDS
from harness.mechanisms.row_weights import RowWeights

LOG3 = math.log(3)


class TwoTokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(LOG3))

    def forward(self, batch):
        return torch.stack([self.weight, torch.zeros(())]).expand(*batch["labels"].shape, 2)


def batch_of(*rows, places=None):
    """Return a batch of prompts of one token with these answers, padded."""
    longest = max(map(len, rows))
    labels = [[-100, *row, *[-100] * (longest - len(row))] for row in rows]
    found = {"labels": torch.tensor(labels)}
    return found if places is None else {**found, PLACES: torch.tensor(places)}


def test_weight_moves_to_the_example_with_the_lower_loss_as_computed_by_hand():
    weights = RowWeights(2, 5e-3, torch.device("cpu"))
    assert weights.values.tolist() == [1, 1]

    weights.update(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))

    assert weights.logits.tolist() == pytest.approx([0.105, 0.095], abs=1e-6)
    assert weights.values.tolist() == pytest.approx([1.005, 0.995], abs=1e-6)


def test_example_that_is_not_in_the_batch_loses_weight_to_one_that_costs_less_than_the_mean():
    weights = RowWeights(3, 5e-3, torch.device("cpu"))

    weights.update(torch.tensor([0.0, 2.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]))

    # d/dlogit of 3 s_1 * 2: s_1 (1 - s_1) > 0 for the example itself, - s_1 s_j < 0 for the others.
    assert weights.logits.tolist() == pytest.approx([0.105, 0.095, 0.105], abs=1e-6)


def test_step_has_the_joint_gradient_computed_by_hand_and_updates_the_weights():
    # At w = log 3 the first token costs log(4/3) with the gradient -1/4, the second log 4 with the gradient 3/4.
    learner, safety = CutLearner(TwoTokens()), Safety(batch_of([1, 1, 1], [0]))
    learner.example_count = 4
    step = BDS().start(learner, safety, 2)

    metrics = step.backward(batch_of([0], [1, 1], places=[2, 0]))

    # Each example counts once: the user's and the refusals' mean gradients are both (-1/4 + 3/4) / 2.
    assert learner.written == pytest.approx([0.25 + 0.25])
    assert float(metrics["loss"]) == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    assert float(metrics["weighted_loss"]) == pytest.approx(float(metrics["loss"]))
    assert float(metrics["safety_loss"]) == pytest.approx(float(metrics["loss"]))
    assert safety.roles == [Role.REFUSAL]
    # d/dlogit_i is l_i - (l_0 + l_2) / 4 up to a factor, with l_i = 0 for 1 and 3: positive for 0 alone.
    logits = step.state_dict()["weights"]["logits"].tolist()
    assert logits == pytest.approx([0.095, 0.105, 0.105, 0.105], abs=1e-6)


def test_second_step_weights_the_losses_with_the_weights_of_the_first():
    learner = CutLearner(TwoTokens())
    learner.example_count = 2
    step = BDS(weight_learning_rate=LOG3 / 2).start(learner, Safety(batch_of([0])), 2)
    user = batch_of([0], [1], places=[0, 1])
    step.backward(user)
    # The logits are log 3 apart, so the weights are 2 * 3/4 and 2 * 1/4.
    assert step.row_weights() == pytest.approx([1.5, 0.5], abs=1e-5)

    metrics = step.backward(user)

    assert float(metrics["weighted_loss"]) == pytest.approx((1.5 * math.log(4 / 3) + 0.5 * math.log(4)) / 2, abs=1e-5)
    assert learner.written == pytest.approx([(1.5 * -0.25 + 0.5 * 0.75) / 2 - 0.25], abs=1e-5)


def test_weights_are_restored_with_the_moments_of_their_optimizer():
    def steps(count, step, learner):
        for number in range(count):
            step.backward(batch_of([0], [1, number % 2], places=[0, 1]))
        return step.state_dict()["weights"]["logits"].tolist()

    def fresh():
        learner = CutLearner(TwoTokens())
        learner.example_count = 2
        return BDS().start(learner, Safety(batch_of([0])), 4), learner

    whole, (first, learner), (resumed, other) = steps(4, *fresh()), fresh(), fresh()
    steps(2, first, learner)
    resumed.load_state_dict(first.state_dict())

    assert steps(2, resumed, other) == whole


def test_settings_out_of_range_are_reported():
    wrong = BDS(weight_learning_rate=0, safety_rows=0, safety_batch_size=0)

    assert [problem.path for problem in wrong.problems()] == [
        "weight_learning_rate",
        "safety_rows",
        "safety_batch_size",
    ]
