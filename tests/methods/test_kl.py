"""KL by hand: the logits of every position are w, w_0 = (0, 0), w = (log 3, 0).

p_0 = (1/2, 1/2), p = (3/4, 1/4). KL(p_0 || p) = (log(2/3) + log 2) / 2 = log(4/3) / 2 = 0.143841; its gradient is
p - p_0 = (1/4, -1/4). Every target is token 0: the loss is log(4/3), its gradient p - (1, 0) = (-1/4, 1/4). With
lambda 2 the update is (1/4, -1/4). The opposite divergence, KL(p || p_0), is 0.130812.
"""

import math

import pytest
import torch
from user_learner import Pair, Safety, UserLearner

from harness.defenses.kl import KL


class Logits(Pair):
    def forward(self, batch):
        assert self.training is torch.is_grad_enabled(), "the aligned model is seen without dropout"
        return self.both.expand(*batch["labels"].shape, 2)


def batch_of(positions):
    return {"labels": torch.tensor([[-100] + [0] * positions + [-100] * 3])}


@pytest.mark.parametrize("positions", [1, 4])
def test_kl_on_two_weights_writes_the_gradient_computed_by_hand(positions):
    learner = UserLearner(Logits(0, 0))
    step = KL(lamb=2).start(learner, Safety(), 1)
    learner.put([torch.tensor([math.log(3)]), torch.tensor([0.0])])

    metrics = step.backward(batch_of(positions))

    assert learner.written == pytest.approx([0.25, -0.25])
    assert float(metrics["divergence"]) == pytest.approx(0.143841, abs=1e-6)
    assert float(metrics["loss"]) == pytest.approx(math.log(4 / 3))
    assert learner.module.both.tolist() == pytest.approx([math.log(3), 0.0])


def test_first_step_is_plain():
    learner = UserLearner(Logits(math.log(3), 0))

    metrics = KL(lamb=1000).start(learner, Safety(), 1).backward(batch_of(2))

    assert learner.written == pytest.approx([-0.25, 0.25], abs=1e-4)
    assert float(metrics["divergence"]) == pytest.approx(0, abs=1e-6)


def test_aligned_model_is_that_of_the_start_after_a_resume():
    first, second = UserLearner(Logits(0, 0)), UserLearner(Logits(math.log(3), 0))
    step = KL(lamb=2).start(first, Safety(), 1)
    resumed = KL(lamb=2).start(second, Safety(), 1)

    resumed.load_state_dict(step.state_dict())
    resumed.backward(batch_of(1))

    assert second.written == pytest.approx([0.25, -0.25])
    assert KL(lamb=-1).problems()
