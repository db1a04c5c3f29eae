"""SBR by hand: the final norm adds w to what it is given, which is the token's id in both features.

The state at a position is then (id + w1, id + w2), and its distance from the aligned one, w - w_0, is the same wherever
it is taken, unless the position does not belong to the model's input. With w_0 = (0, 0) and w = (1, 1) the mean over
the d = 2 entries is 1 for every anchor; lambda 50 adds 50 to the loss and 50 * 2 * (1, 1) / 2 = (50, 50) to the
gradient. With w = (1, 3) the mean is (1 + 9) / 2 = 5 and the gradient 50 * 2 * (1, 3) / 2 = (50, 150).
"""

import pytest
import torch
from torch import nn
from user_learner import CutLearner, Safety

from harness.corpora.examples import Role
from harness.defenses.sbr import SBR, prompts
from harness.errors import ModelError

USER = {"input_ids": torch.tensor([[1, 2]]), "labels": torch.tensor([[-100, 0]])}
ANCHORS = {
    "input_ids": torch.tensor([[5, 6, 7, 8, 9, 10], [3, 4, 8, 0, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]),
    "labels": torch.tensor([[-100, -100, -100, 8, 9, 10], [-100, 4, 8, -100, -100, -100]]),
}


class Shift(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.tensor([0.0])), nn.Parameter(torch.tensor([0.0]))

    def forward(self, hidden):
        return hidden + torch.cat([self.first, self.second])


class Decoder(nn.Module):
    """Embeds a token as its id, twice."""

    def __init__(self):
        super().__init__()
        self.norm = Shift()

    def get_decoder(self):
        return self

    def forward(self, batch):
        return self.norm(batch["input_ids"].float()[..., None].expand(-1, -1, 2))


class Learner(CutLearner):
    """The user's loss is w1 - w2."""

    def __init__(self):
        super().__init__(Decoder())

    def loss(self, piece):
        return (self.module.norm.first - self.module.norm.second).sum()


def at(first, second):
    return [torch.tensor([float(first)]), torch.tensor([float(second)])]


@pytest.mark.parametrize(("moved", "distance", "update"), [((1, 1), 1, (51, 49)), ((1, 3), 5, (51, 149))])
def test_anchors_add_the_loss_and_the_gradient_computed_by_hand(moved, distance, update):
    learner, safety = Learner(), Safety(ANCHORS)
    step = SBR().start(learner, safety, 2)
    step.backward(USER)
    assert learner.written == [1, -1], "the first step is plain, bit for bit"
    learner.put(at(*moved))

    metrics = step.backward(USER)

    assert learner.written == pytest.approx(update)
    assert float(metrics["anchor_distance"]) == pytest.approx(distance)
    assert float(metrics["loss_gradient_norm"]) == pytest.approx(2**0.5)
    assert float(metrics["anchor_gradient_norm"]) == pytest.approx(50 * (moved[0] ** 2 + moved[1] ** 2) ** 0.5)
    assert safety.roles == [Role.REFUSAL], "the anchors are sampled once"
    assert not any(part._forward_hooks for part in learner.module.modules())


def test_states_are_those_of_the_last_prompt_token_whatever_the_padding():
    cut = prompts(ANCHORS)

    assert cut["input_ids"].tolist() == [[5, 6, 7, 8], [3, 4, 8, 0]]
    assert cut["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert cut["labels"].tolist() == [[-100, -100, -100, 8], [-100, 4, -100, -100]]
    step = SBR().start(Learner(), Safety(ANCHORS), 1)
    (anchor,) = step._aligned_anchors()
    assert anchor.aligned.tolist() == [[7, 7], [3, 3]]


def test_aligned_model_is_that_of_the_start_after_a_resume():
    first, second = Learner(), Learner()
    step = SBR().start(first, Safety(ANCHORS), 2)
    second.put(at(1, 3))
    resumed = SBR().start(second, Safety(ANCHORS), 2)

    resumed.load_state_dict(step.state_dict())
    resumed.backward(USER)

    assert second.written == pytest.approx([51, 149])


def test_model_without_a_final_norm_is_refused():
    learner = Learner()
    del learner.module.norm

    with pytest.raises(ModelError, match="final norm"):
        SBR().start(learner, Safety(ANCHORS), 1)


def test_settings_out_of_range_are_reported():
    assert [problem.path for problem in SBR(lamb=-1, anchors=0).problems()] == ["lamb", "anchors"]
    (need,) = SBR(anchors=4).needs
    assert (need.role, need.rows, need.batch_size) == (Role.REFUSAL, 4, 4)
