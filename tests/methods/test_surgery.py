"""Surgery by hand: one layer of two heads, whose weights of the first token are p_1 and p_2 times the id of the text.

Harmful texts have the id 3 and safe ones the id 2. With p = (0.2, -0.1) the sinks are (0.6, -0.3) and (0.4, -0.2), the
divergences (0.2, -0.1). The mean over both heads of what is positive is 0.1, which alpha 300 makes 30; one head alone
would be 60. The gradient is 300 (3 - 2) / 2 = 150 for p_1 and none for p_2. The user's loss is p_1 + 2 p_2.

The first position and padding have other weights, so that it would be seen if they counted.
"""

import pytest
import torch
from torch import nn
from user_learner import CutLearner, Safety

from harness.corpora.examples import Role
from harness.defenses.surgery import Surgery
from harness.errors import ModelError


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.tensor(0.2)), nn.Parameter(torch.tensor(-0.1))
        self.gives_weights = True

    def forward(self, ids):
        # As in a real model, later positions are queries: [batch, heads, time, time].
        of_first = torch.stack([self.first, self.second])[None, :, None] * ids[:, None, :].float()
        weights = torch.cat([of_first[..., None], torch.zeros(*of_first.shape, ids.shape[1] - 1)], dim=-1)
        return torch.zeros(*ids.shape, 2, requires_grad=True), weights if self.gives_weights else None


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"self_attn": Attention()})])

    def get_decoder(self):
        return self

    def forward(self, batch):
        return self.layers[0]["self_attn"](batch["input_ids"])[0]


class Learner(CutLearner):
    def __init__(self):
        super().__init__(Decoder())

    def loss(self, piece):
        return self.trainables[0] + 2 * self.trainables[1]


def texts(*rows):
    """Return texts given as (id, length); the first position and padding have the id 1000."""
    longest = max(length for _, length in rows)
    ids, mask = torch.full((len(rows), longest), 1000), torch.zeros(len(rows), longest, dtype=torch.int64)
    for row, (token, length) in enumerate(rows):
        ids[row, 1:length], mask[row, :length] = token, 1
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.where(mask.bool(), -100)}


OWN = texts((1, 2))


@pytest.mark.parametrize(
    ("harmful", "safe"),
    [
        (texts((3, 4)), texts((2, 3))),
        # Of several texts the sink is the mean: (2 + 4) / 2 and (1 + 3) / 2, whatever their lengths.
        (texts((2, 5), (4, 2)), texts((1, 2), (3, 4))),
    ],
)
def test_head_that_looks_at_the_first_token_more_for_harmful_text_is_steered(harmful, safe):
    learner, batches = Learner(), Safety(harmful, safe)

    metrics = Surgery().start(learner, batches, 1).backward(OWN)

    assert batches.roles == [Role.HARMFUL, Role.REFUSAL]
    assert learner.written == pytest.approx([1 + 150, 2])
    assert float(metrics["loss"]) == 0
    assert 300 * float(metrics["sink_divergence"]) == pytest.approx(30)
    assert float(metrics["positive_heads"]) == 0.5
    assert float(metrics["loss_gradient_norm"]) == pytest.approx(5**0.5)
    assert float(metrics["sink_gradient_norm"]) == pytest.approx(150)
    assert not any(part._forward_hooks for part in learner.module.modules())


def test_no_head_is_steered_where_none_diverges():
    learner = Learner()

    metrics = Surgery().start(learner, Safety(texts((2, 3)), texts((2, 3))), 1).backward(OWN)

    assert learner.written == [1, 2]
    assert float(metrics["positive_heads"]) == 0


def test_implementation_without_weights_is_refused():
    learner = Learner()
    learner.module.layers[0]["self_attn"].gives_weights = False

    with pytest.raises(ModelError, match="Attention returned no attention weights"):
        Surgery().start(learner, Safety(texts((2, 3))), 1).backward(OWN)


def test_settings_out_of_range_are_reported():
    assert [problem.path for problem in Surgery(alpha=-1, batch_size=0).problems()] == ["alpha", "batch_size"]
