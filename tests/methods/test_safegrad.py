"""SafeGrad by hand.

The user's loss is w1 - w2, so g_u = (1, -1). The model gives every position the logits w, the aligned one w_0 = (0, 0)
and p_0 = (1/2, 1/2); at w = (0, log 3), p = (1/4, 3/4), so g_a = p - p_0 = (-1/4, 1/4), and the divergence is
log(4/3) / 2 = 0.143841. <g_u, g_a> = -1/2 < 0 and ||g_a||^2 = 1/8, so g_u + 4 g_a = (0, 0) is left of g_u, and the
update with rho 1 is g_a itself. With the user's loss w1 + 3 w2, <g_u, g_a> = 1/2: nothing is removed, and the update
is (1, 3) + g_a. With the loss w1, g_u = (1, 0) and <g_u, g_a> = -1/4: (1, 0) + 2 g_a = (1/2, 1/2) is orthogonal to g_a,
and the update with rho 2 is (1/2, 1/2) + 2 g_a = (0, 1).

If the first logit is 0 whatever w1 is, g_a = (0, 1/4): of g_u = (1, -1) the part (1, 0) is left, and with rho 4 the
update is (1, 0) + (0, 1) = (1, 1).
"""

import math

import pytest
import torch
from user_learner import CutLearner, Pair, Safety

from harness.corpora.examples import Role
from harness.defenses.safegrad import SafeGrad

USER = {"labels": torch.tensor([[-100, 0]]), "user": torch.tensor([1])}
SAFETY = {"labels": torch.tensor([[-100, 0, 1, 1, -100], [-100, 0, -100, -100, -100]])}
MOVED = [torch.tensor([0.0]), torch.tensor([math.log(3)])]


class Logits(Pair):
    share = 1.0
    """What the first logit is multiplied with."""

    def forward(self, batch):
        assert self.training is torch.is_grad_enabled(), "the aligned model is seen without dropout"
        return (self.both * torch.tensor([self.share, 1.0])).expand(*batch["labels"].shape, 2)


class TwoLosses(CutLearner):
    """The user's loss is linear in the weights; predictions are those of the module."""

    def __init__(self, *slope):
        super().__init__(Logits(0, 0))
        self._slope = torch.tensor(slope)

    def loss(self, piece):
        return self.module.both @ self._slope


def written(*slope, at=MOVED, **settings):
    learner, safety = TwoLosses(*slope), Safety(SAFETY)
    step = SafeGrad(**settings).start(learner, safety, 1)
    learner.put(at)
    metrics = step.backward(USER)
    assert safety.roles == [Role.REFUSAL]
    return learner.written, metrics


@pytest.mark.parametrize(
    ("slope", "rho", "update", "conflict"),
    [
        ((1.0, -1.0), 1, (-0.25, 0.25), 1),
        ((1.0, 3.0), 1, (0.75, 3.25), 0),
        ((1.0, 0.0), 2, (0.0, 1.0), 1),
        ((1.0, 0.0), 0, (0.5, 0.5), 1),
    ],
)
def test_update_is_the_one_computed_by_hand(slope, rho, update, conflict):
    found, metrics = written(*slope, rho=rho)

    assert found == pytest.approx(update, abs=1e-6)
    assert float(metrics["conflict"]) == conflict
    assert float(metrics["divergence"]) == pytest.approx(0.143841, abs=1e-6)
    assert float(metrics["safety_gradient_norm"]) == pytest.approx(math.sqrt(1 / 8))
    assert float(metrics["loss_gradient_norm"]) == pytest.approx(math.hypot(*slope))


def test_component_against_the_safety_gradient_is_removed_before_it_is_added():
    learner = TwoLosses(1.0, -1.0)
    learner.module.share = 0.0
    step = SafeGrad(rho=4).start(learner, Safety(SAFETY), 1)
    learner.put(MOVED)

    step.backward(USER)

    assert learner.written == pytest.approx([1, 1])


def test_first_step_is_plain_bit_for_bit():
    found, metrics = written(1.0, -1.0, at=[torch.tensor([0.0])] * 2)

    assert found == [1, -1]
    assert (float(metrics["divergence"]), float(metrics["conflict"])) == (0, 0)


def test_aligned_model_is_that_of_the_start_after_a_resume():
    first, second = TwoLosses(1.0, -1.0), TwoLosses(1.0, -1.0)
    step = SafeGrad().start(first, Safety(SAFETY), 1)
    second.put(MOVED)
    resumed = SafeGrad().start(second, Safety(SAFETY), 1)

    resumed.load_state_dict(step.state_dict())
    resumed.backward(USER)

    assert second.written == pytest.approx([-0.25, 0.25])


def test_settings_out_of_range_are_reported():
    wrong = SafeGrad(rho=-1, safety_rows=0, safety_batch_size=0)

    assert [problem.path for problem in wrong.problems()] == ["rho", "safety_rows", "safety_batch_size"]
    (need,) = SafeGrad(safety_rows=20, safety_batch_size=4).needs
    assert (need.role, need.rows, need.batch_size) == (Role.REFUSAL, 20, 4)
