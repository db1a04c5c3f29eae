"""Constrained SFT by hand: at every position four tokens have the logits (w1, w2, 0, 0); every target is the first.

At the start w = (0, 0) and the target has probability 1/4; at w = (log 3, 0) it has 1/2. So D = log 2 at every token,
and since sigmoid(beta log 2) = 2^beta / (1 + 2^beta), the weight is 2 / (1 + 2^beta): 0.4 for beta 2, 0.828427 for 0.5,
0.965356 for 0.1. An answer of six tokens has the betas (0.5, 2, 2, 2, 2, 0.1), and the mean of its weights is
(0.828427 + 4 * 0.4 + 0.965356) / 6 = 0.565631. The cross-entropy of a token is log 2, its gradient (1/2 - 1, 1/6).

The constrained loss of a token is -(2 / beta) log sigmoid(beta log 2) = (2 / beta) log(1 + 2^-beta).
"""

import math

import pytest
import torch
from user_learner import CutLearner, Pair, Safety

from harness.defenses.constrained_sft import ConstrainedSFT

BETAS = (0.5, 2, 2, 2, 2, 0.1)
RISEN = [torch.tensor([math.log(3)]), torch.tensor([0.0])]


class FourTokens(Pair):
    def forward(self, batch):
        assert self.training is torch.is_grad_enabled(), "the aligned model is seen without dropout"
        return torch.cat([self.both, torch.zeros(2)]).expand(*batch["labels"].shape, 4)


def batch_of(*answers):
    """Return a batch of prompts of two tokens with answers of these lengths."""
    longest = max(answers)
    return {"labels": torch.tensor([[-100] * 2 + [0] * count + [-100] * (longest - count) for count in answers])}


def step_at(weights, *answers, **settings):
    learner = CutLearner(FourTokens(0, 0))
    step = ConstrainedSFT(**settings).start(learner, Safety(), 1)
    learner.put(weights)
    return learner, step.backward(batch_of(*answers))


def test_answer_of_six_tokens_is_weighted_as_computed_by_hand():
    learner, metrics = step_at(RISEN, 6)

    weight = 0.565631
    assert float(metrics["token_weight"]) == pytest.approx(weight, abs=1e-6)
    assert learner.written == pytest.approx([-weight / 2, weight / 6], abs=1e-6)
    assert float(metrics["loss"]) == pytest.approx(math.log(2))
    constrained = sum(2 / beta * math.log(1 + 2**-beta) for beta in BETAS) / 6
    assert float(metrics["constrained_loss"]) == pytest.approx(constrained)


def test_tokens_are_counted_from_the_start_of_each_answer_and_averaged_over_the_batch():
    _, metrics = step_at(RISEN, 6, 1)

    assert float(metrics["token_weight"]) == pytest.approx((6 * 0.565631 + 0.828427) / 7, abs=1e-6)
    assert ConstrainedSFT().betas([6, 2]) == pytest.approx([*BETAS, 0.5, 2])
    assert ConstrainedSFT(beta=1, first_factor=2, early_factor=3, early_tokens=2).betas([3]) == [2, 3, 1]


def test_token_whose_probability_has_fallen_is_weighted_more():
    _, metrics = step_at([torch.tensor([math.log(1 / 3)]), torch.tensor([0.0])], 1)

    # The probability falls from 1/4 to 1/10, so the weight is 2 / (1 + 0.4^0.5).
    assert float(metrics["token_weight"]) == pytest.approx(2 / (1 + math.sqrt(0.4)))


def test_weight_never_falls_below_the_floor():
    settings = {"beta": 100, "first_factor": 1}

    assert float(step_at(RISEN, 1, **settings)[1]["token_weight"]) == pytest.approx(1e-3)
    assert float(step_at(RISEN, 1, floor=0.25, **settings)[1]["token_weight"]) == 0.25


def test_first_step_is_plain_bit_for_bit():
    learner, metrics = step_at([torch.tensor([0.0]), torch.tensor([0.0])], 6)

    assert learner.written == learner.gradient(batch_of(6))[1] == [-0.75, 0.25]
    assert float(metrics["token_weight"]) == 1


def test_aligned_model_is_that_of_the_start_after_a_resume():
    first, second = CutLearner(FourTokens(0, 0)), CutLearner(FourTokens(1, 2))
    step, resumed = (ConstrainedSFT().start(learner, Safety(), 1) for learner in (first, second))

    resumed.load_state_dict(step.state_dict())
    second.put(RISEN)
    metrics = resumed.backward(batch_of(6))

    assert float(metrics["token_weight"]) == pytest.approx(0.565631, abs=1e-6)


def test_settings_out_of_range_are_reported():
    wrong = ConstrainedSFT(beta=0, first_factor=-1, early_factor=0, early_tokens=0, floor=2)

    assert [problem.path for problem in wrong.problems()] == [
        "beta",
        "first_factor",
        "early_factor",
        "early_tokens",
        "floor",
    ]
