"""BFPO by hand: the logits of every position are (w_1, w_2), so a token's log-probability is one of two numbers.

At w_0 = (0, 0) they are -log 2 both; at w = (log 3, 0) they are log(3/4) and log(1/4), so an answer of token 0 has
risen by log(3/2) for each token, and one of token 1 by -log 2. By default the targets are 100 (0.5 for two safe
answers).

The harmful pair has a refusal of one token 0 and a harmful answer of two tokens 1: its margin is log(3/2) + 2 log 2 =
log 6. The benign prompt has an answer of two tokens 1 and gets the refusal of the stage's batch, one token 0: its
margin is -2 log 2 - log(3/2) = -log 6. The loss is ((log 6 - 100)^2 + (-log 6 - 50)^2) / 2. The gradient of the first
margin is (1/4) + 2 (3/4) = 7/4 for w_1, that of the second -7/4: together ((log 6 - 100) - (-log 6 - 50)) 7/4 = (2 log
6 - 50) 7/4.
"""

import math

import pytest
import torch
from test_dpo import Learner, answers

from harness.corpora.batches import Pair
from harness.corpora.examples import Role
from harness.defenses.bfpo import BFPO, crossed

ONE = {"attention_mask": torch.ones(1, 2, dtype=torch.int64), "input_ids": torch.tensor([[9, 0]])}


class Batches:
    def __init__(self):
        self.roles = []

    def pair(self, role):
        self.roles.append(role)
        return Pair(harmful=answers(1, 2), refusal=answers(0, 1))

    def next(self, role):
        self.roles.append(role)
        given = answers(1, 2)
        return {**given, "input_ids": torch.tensor([[8, 1, 1]]), "attention_mask": torch.ones_like(given["labels"])}


def own():
    return {**answers(0, 1), **ONE}


def stepped(**settings):
    learner, batches = Learner(), Batches()
    step = BFPO(**settings).start(learner, batches, 1)
    learner.put([torch.tensor([math.log(3)]), torch.zeros(1)])
    metrics = step.backward(own())
    assert batches.roles == [Role.HARMFUL, Role.BENIGN]
    return learner, metrics


@pytest.mark.parametrize(
    ("labels", "target"), [((True, True), 50), ((True, False), 100), ((False, True), -100), ((False, False), -50)]
)
def test_target_depends_on_the_safety_of_both_answers(labels, target):
    preferred, other = labels

    assert BFPO().target(safe_preferred=preferred, safe_other=other) == pytest.approx(target)


def test_loss_and_gradient_are_those_computed_by_hand():
    learner, metrics = stepped(sft_weight=0.0)

    far, near = math.log(6) - 100, -math.log(6) - 50
    assert float(metrics["preference_loss"]) == pytest.approx((far**2 + near**2) / 2)
    assert learner.written == pytest.approx([(far - near) * 7 / 4, -(far - near) * 7 / 4], rel=1e-5)
    assert float(metrics["harmful_margin"]) == pytest.approx(math.log(6))
    assert float(metrics["harmless_margin"]) == pytest.approx(-math.log(6))
    assert float(metrics["preference_gradient_norm"]) == pytest.approx(abs(far - near) * 7 / 4 * 2**0.5, rel=1e-5)


def test_first_step_has_half_of_both_squares():
    learner, batches = Learner(), Batches()

    metrics = BFPO(sft_weight=0.0).start(learner, batches, 1).backward(own())

    assert float(metrics["preference_loss"]) == pytest.approx((100**2 + 50**2) / 2)


def test_loss_of_the_alignment_is_added_with_its_weight():
    plain, _ = stepped(sft_weight=0.0)
    learner, metrics = stepped(sft_weight=2.0)

    # The loss of the stage's own batch is w_1 + 2 w_2.
    assert learner.written == pytest.approx([plain.written[0] + 2, plain.written[1] + 4], rel=1e-5)
    assert float(metrics["loss"]) == pytest.approx(math.log(3))


def test_prompts_are_kept_and_answers_are_those_of_the_other_batch():
    prompts = {
        "input_ids": torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [7, 8, 0, 0]]),
        "labels": torch.tensor([[-100, -100, 3, 4], [-100, 6, -100, -100], [-100, 8, -100, -100]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]),
    }
    answers_of = {
        "input_ids": torch.tensor([[11, 12, 13, 14], [15, 0, 0, 0]]),
        "labels": torch.tensor([[-100, 12, 13, 14], [-100, -100, -100, -100]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]),
    }

    own_answers, swapped = crossed(prompts, answers_of)

    assert own_answers["input_ids"].tolist() == [[1, 2, 3, 4], [5, 0, 0, 0]]
    assert own_answers["labels"].tolist() == [[-100, -100, 3, 4], [-100] * 4]
    assert swapped["input_ids"].tolist() == [[1, 2, 12, 13, 14], [5, 0, 0, 0, 0]]
    assert swapped["labels"].tolist() == [[-100, -100, 12, 13, 14], [-100] * 5]


def test_settings_out_of_range_are_reported():
    found = BFPO(beta=0.0, b1=1.0, alpha=-1, benign_batch_size=0).problems()

    assert [problem.path for problem in found] == ["beta", "alpha", "benign_batch_size", "b1"]
