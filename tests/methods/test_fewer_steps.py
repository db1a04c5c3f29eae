"""Fewer steps: the weights are those that a plain run has after as many steps, and nothing moves them afterwards."""

import pytest
import torch
from user_learner import Pair, Safety, UserLearner

from harness.defenses.fewer_steps import FewerSteps


def losses_and_weights(method, steps=4):
    """Return the losses and the weights of a run with AdamW on the loss w1^2 + 2 w2^2, from (3, 4)."""
    learner = UserLearner(Pair(3, 4), lambda w, _: (w.first.square() + 2 * w.second.square()).sum())
    step = method.start(learner, Safety(), steps)
    optimizer = torch.optim.AdamW(learner.trainables, lr=0.5, weight_decay=0.1)
    losses, weights = [], []
    for place in range(steps):
        learner.steps_taken = place
        losses.append(float(step.backward({"user": place})["loss"]))
        optimizer.step()
        weights.append(learner.module.both.tolist())
    return losses, weights


@pytest.mark.parametrize(("share", "trained"), [(0.5, 2), (0.51, 3), (0.25, 1), (0.75, 3)])
def test_weights_are_those_of_a_plain_run_after_its_share_of_the_steps(share, trained):
    plain_losses, plain = losses_and_weights(FewerSteps(share=1.0))

    losses, weights = losses_and_weights(FewerSteps(share=share))

    assert weights == plain[:trained] + [plain[trained - 1]] * (4 - trained)
    assert losses[: trained + 1] == plain_losses[: trained + 1]
    assert len(set(losses[trained:])) == 1, "the loss that is reported is that of the weights"
    first, second = plain[trained - 1]
    assert losses[-1] == pytest.approx(first**2 + 2 * second**2)


def test_share_of_zero_is_the_aligned_model():
    assert losses_and_weights(FewerSteps(share=0.0))[1] == [[3, 4]] * 4


def test_settings_out_of_range_are_reported():
    assert [problem.path for problem in FewerSteps(share=-0.1).problems()] == ["share"]
