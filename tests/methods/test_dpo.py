"""DPO by hand: the logits of every position are (w_1, w_2), so an answer of m tokens has m times one log-probability.

Refusals are of token 0, harmful answers of token 1. At w_0 = (0, 0) both log-probabilities are -log 2; at (log 3, 0)
they are log(3/4) and log(1/4), so a token of a refusal has risen by log(3/2) and one of a harmful answer by log(1/2).

Of the two pairs, one has two tokens of refusal and one of harm, the other one and three: margins 2 log(3/2) + log 2 =
log(9/2) and log(3/2) + 3 log 2 = log 12. With beta 1 the losses are log(1 + 2/9) and log(1 + 1/12), together with the
gradients -(2/11) and -(1/13) times those of the margins: (2 (1/4) + 1 (3/4), -...) = (5/4, -5/4) and (1/4 + 3 (3/4)) =
5/2 (for token 0 the gradient of the log-probability is (1/4, -1/4), for token 1 it is (-3/4, 3/4)). Their mean is
-((2/11) (5/4) + (1/13) (5/2)) / 2 = -0.2097902.
"""

import math

import pytest
import torch
from torch import nn
from user_learner import CutLearner

from harness.corpora.batches import Pair
from harness.corpora.examples import Role
from harness.defenses.dpo import DPO
from harness.training.pieces import cut


class Logits(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        return torch.cat([self.first, self.second]).expand(*batch["labels"].shape, 2)


class Learner(CutLearner):
    """The loss of the stage's own batch is w_1 + 2 w_2."""

    def __init__(self):
        super().__init__(Logits())

    def pieces(self, batch, *, like=None):
        whole = {"attention_mask": torch.ones_like(batch["labels"]), **batch}
        return cut(whole, None, device=torch.device("cpu"), like=like)

    def loss(self, piece):
        return (self.module.first + 2 * self.module.second).sum()


def answers(token, *counts):
    """Return a batch with answers of so many tokens, after a prompt of one token."""
    labels = torch.full((len(counts), 1 + max(counts)), -100)
    for row, count in enumerate(counts):
        labels[row, 1 : 1 + count] = token
    return {"labels": labels, "input_ids": torch.zeros_like(labels)}


class Pairs:
    def __init__(self, pair):
        self._pair, self.roles = pair, []

    def pair(self, role):
        self.roles.append(role)
        return self._pair


OWN = answers(0, 1)
PAIR = Pair(harmful=answers(1, 1, 3), refusal=answers(0, 2, 1))


def stepped(**settings):
    learner, pairs = Learner(), Pairs(PAIR)
    step = DPO(**settings).start(learner, pairs, 1)
    learner.put([torch.tensor([math.log(3)]), torch.zeros(1)])
    metrics = step.backward(OWN)
    assert pairs.roles == [Role.HARMFUL]
    return learner, metrics


def test_loss_and_gradient_are_those_computed_by_hand():
    learner, metrics = stepped(beta=1.0, sft_weight=0.0)

    assert learner.written == pytest.approx([-0.2097902, 0.2097902])
    assert float(metrics["preference_loss"]) == pytest.approx((math.log(11 / 9) + math.log(13 / 12)) / 2)
    assert float(metrics["loss"]) == float(metrics["preference_loss"])
    assert float(metrics["refusal_rise"]) == pytest.approx(1.5 * math.log(1.5))
    assert float(metrics["harmful_fall"]) == pytest.approx(2 * math.log(2))
    assert float(metrics["preferred_share"]) == 1


def test_loss_of_the_alignment_is_added_with_its_weight():
    learner, metrics = stepped(beta=1.0, sft_weight=0.5)

    assert learner.written == pytest.approx([0.5 - 0.2097902, 1 + 0.2097902])
    assert float(metrics["loss"]) == pytest.approx(math.log(3))


def test_first_step_has_loss_log_2_and_half_of_beta_times_the_gradient_of_the_margin():
    learner, pairs = Learner(), Pairs(PAIR)

    metrics = DPO(beta=0.1, sft_weight=0.0).start(learner, pairs, 1).backward(OWN)

    assert float(metrics["preference_loss"]) == pytest.approx(math.log(2))
    # Margins of 3 and 4 tokens, of which each moves by (1/2, -1/2).
    assert learner.written == pytest.approx([-0.05 * (1.5 + 2) / 2, 0.05 * (1.5 + 2) / 2])


def test_reference_is_that_of_the_start_after_a_resume():
    learner, pairs = Learner(), Pairs(PAIR)
    settings = DPO(beta=1.0, sft_weight=0.0)
    state = settings.start(learner, pairs, 1).state_dict()
    learner.put([torch.tensor([math.log(3)]), torch.zeros(1)])
    resumed = settings.start(learner, pairs, 1)

    resumed.load_state_dict(state)
    resumed.backward(OWN)

    assert learner.written == pytest.approx([-0.2097902, 0.2097902])


def test_settings_out_of_range_are_reported():
    found = DPO(beta=0.0, sft_weight=-1, harmful_batch_size=0).problems()

    assert [problem.path for problem in found] == ["beta", "sft_weight", "harmful_batch_size"]
