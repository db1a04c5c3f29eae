"""SEAL by hand: at each position two tokens have the logits (w, 0), with w = log 3 and a learning rate of almost 0.

A target of the first token costs log(4/3) with the gradient -1/4, one of the second log 4 with 3/4. The user has one
example of each, the refusal is the second token. In the first epoch the model's gradient is the refusal's, 3/4. The
first step of the logits (see test_bds) makes the weights 1.005 and 0.995, so in the second epoch, with the weight 0.97,
it is 0.97 * 3/4 + 0.03 * (1.005 * -1/4 + 0.995 * 3/4) / 2.
"""

import math

import pytest
import torch
from torch import nn
from user_learner import CutLearner, Safety

from harness.corpora.encode import Encoded
from harness.corpora.examples import Role
from harness.defenses.seal import SEAL
from harness.training.budget import Budget
from harness.training.choice import StageRows

CHEAP, DEAR = (Encoded([0, token], [-100, token]) for token in (0, 1))
BUDGET = Budget(batch_size=2, learning_rate=1e-12, weight_decay=0.0, max_grad_norm=None)
REFUSAL = {"labels": torch.tensor([[-100, 1]])}


class TwoTokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(math.log(3)))

    def forward(self, batch):
        return torch.stack([self.weight, torch.zeros(())]).expand(*batch["labels"].shape, 2)


class Recording(CutLearner):
    """Keeps every gradient that is written."""

    def __init__(self):
        super().__init__(TwoTokens())
        self.gradients = []

    def set_gradient(self, gradient):
        super().set_gradient(gradient)
        self.gradients += self.written_scalar()

    def written_scalar(self):
        return [float(weight.grad) for weight in self.trainables]


def choose(own, **settings):
    learner, safety = Recording(), Safety(REFUSAL)
    given = StageRows(own, {}, batch_size=2, seed=0, pad_id=0)
    settings = {"epochs": 1, "budget": BUDGET} | settings
    return SEAL(**settings).choose(learner, given, safety), learner, safety


def test_example_with_the_lower_loss_is_kept():
    assert choose([DEAR, CHEAP], keep=0.5)[0].rows == [(1, CHEAP)]
    assert choose([CHEAP, DEAR], keep=0.5)[0].rows == [(0, CHEAP)]
    assert choose([DEAR, CHEAP], keep=1)[0].rows == [(0, DEAR), (1, CHEAP)]


def test_share_is_rounded_up_and_what_is_kept_stays_in_order():
    found, _, _ = choose([DEAR, CHEAP, CHEAP, DEAR, CHEAP], keep=0.55, epochs=20)

    assert found.rows == [(1, CHEAP), (2, CHEAP), (4, CHEAP)]


def test_model_takes_the_steps_computed_by_hand():
    _, learner, safety = choose([CHEAP, DEAR], epochs=2)

    second = 0.97 * 0.75 + 0.03 * (1.005 * -0.25 + 0.995 * 0.75) / 2
    assert learner.gradients == pytest.approx([0.75, second], abs=1e-6)
    assert safety.roles == [Role.REFUSAL] * 2


def test_weight_of_the_safety_loss_does_not_fall_below_zero():
    _, learner, _ = choose([CHEAP, DEAR], epochs=3, safety_decay=0.7, selector_learning_rate=1e-9)

    assert learner.gradients == pytest.approx([0.75, 0.3 * 0.75 + 0.7 * 0.25, 0.25], abs=1e-6)


def test_model_is_restored_exactly():
    _, learner, _ = choose([CHEAP, DEAR], epochs=3, budget=Budget(batch_size=2, learning_rate=0.1))

    assert float(learner.module.weight.detach()) == float(torch.tensor(math.log(3)))
    assert learner.module.weight.grad is None


def test_settings_out_of_range_are_reported():
    wrong = SEAL(keep=0, epochs=0, safety_weight=2, safety_decay=-1, selector_learning_rate=0, safety_rows=0)

    assert sorted(problem.path for problem in wrong.problems()) == [
        "epochs",
        "keep",
        "safety_decay",
        "safety_rows",
        "safety_weight",
        "selector_learning_rate",
    ]
