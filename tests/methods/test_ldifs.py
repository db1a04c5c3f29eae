"""LDIFS by hand: two layers with the features u1 x and u2 x, x = 1 at every token, and a loss without a gradient.

The batch has two rows of two tokens and of one (its second is padding), and a third that only fills it: three tokens
and two rows count. With u - u_0 = (1, 2) the squared distances are 3 * 1 and 3 * 4.

Mean: rho 4 gives the penalty 4/2 * (3 + 12) / 2 = 15 and the gradient 4/2 * 2 * 3 * (1, 2) / 2 = (6, 12). Gated sum:
rho 0.04 makes the terms 0.06 and 0.24; the second is not below 0.1 and counts no more, so the gradient is
0.02 * 2 * 3 * (1, 0) = (0.12, 0).
"""

import pytest
import torch
from torch import nn
from user_learner import Safety, UserLearner

from harness.defenses.ldifs import LDIFS
from harness.errors import ModelError

BATCH = {
    "attention_mask": torch.tensor([[1, 1], [1, 0], [1, 1]]),
    "labels": torch.tensor([[-100, 0], [0, 0], [-100, -100]]),
}


class Scale(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight]))

    def forward(self, rows):
        return self.weight * rows


class Features(nn.Module):
    def __init__(self, *weights):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"mlp": Scale(weight)}) for weight in weights])

    def get_decoder(self):
        return self

    def forward(self, batch):
        for layer in self.layers:
            layer["mlp"](torch.ones(*batch["labels"].shape, 1))
        return torch.zeros(*batch["labels"].shape, 2, requires_grad=True)


def moved_by(first, second, **settings):
    learner = UserLearner(Features(5.0, 6.0))
    step = LDIFS(**settings).start(learner, Safety(), 1)
    learner.put([torch.tensor([5.0 + first]), torch.tensor([6.0 + second])])
    return learner, step.backward(BATCH)


def test_mean_distance_writes_the_gradient_computed_by_hand():
    learner, metrics = moved_by(1, 2, rho=4.0)

    assert learner.written == [6, 12]
    assert (float(metrics["penalty"]), int(metrics["layers_held"])) == (15, 2)
    assert float(metrics["feature_distance"]) == pytest.approx(15**0.5)
    assert float(metrics["loss"]) == pytest.approx(0.693147)


def test_gated_sum_lets_go_of_a_layer_that_has_drifted_far():
    learner, metrics = moved_by(1, 2, rho=0.04, distance="gated_sum")

    assert learner.written == pytest.approx([0.12, 0])
    assert (float(metrics["penalty"]), int(metrics["layers_held"])) == (pytest.approx(0.06), 1)


def test_mean_distance_holds_on_however_far_a_layer_has_drifted():
    learner, metrics = moved_by(1000, 0, rho=4.0)

    assert learner.written == [6000, 0]
    assert int(metrics["layers_held"]) == 2


def test_ldifs_leaves_no_hook_and_no_moved_weight():
    learner, _ = moved_by(1, 2, rho=4.0)

    assert [weight.item() for weight in learner.trainables] == [6, 8]
    assert not any(part._forward_hooks for part in learner.module.modules())


def test_model_without_feed_forward_blocks_is_refused():
    model = Features(1.0)
    model.layers = nn.ModuleList([nn.ModuleDict({"other": Scale(1.0)})])

    with pytest.raises(ModelError, match="feed-forward"):
        LDIFS().start(UserLearner(model), Safety(), 1)


def test_ldifs_settings_out_of_range_are_reported():
    assert LDIFS(rho=-1).problems()
    assert not LDIFS().problems()
