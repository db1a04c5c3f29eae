"""A decoder for methods that read hidden states: every layer adds its weights to them."""

import torch
from torch import nn
from user_learner import CutLearner

REAL = 5
"""The id of a token whose embedding is zero; that of any other id is not."""


class Shift(nn.Module):
    def __init__(self, values):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([float(value) for value in values]))

    def forward(self, hidden):
        return hidden + self.weight


class Decoder(nn.Module):
    """Layers that each add a vector, and a final norm that does nothing."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(Shift(values) for values in layers)
        self.norm = nn.Identity()

    def get_decoder(self):
        return self

    def forward(self, batch):
        hidden = (batch["input_ids"][..., None] - REAL).float().expand(-1, -1, len(self.layers[0].weight))
        for layer in self.layers:
            hidden = layer(hidden)
        return self.norm(hidden)


class ShiftLearner(CutLearner):
    """The loss of the stage's own batch is the first weight minus the second."""

    def __init__(self, *layers):
        super().__init__(Decoder(*layers))

    def loss(self, piece):
        return self.trainables[0][0] - self.trainables[0][1]


def batch(*rows):
    """Return a batch of rows given as (prompt tokens, answer tokens): real tokens, then padding to the longest."""
    longest = max(sum(row) for row in rows)
    ids = torch.full((len(rows), longest), -1)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, (prompt, answer) in enumerate(rows):
        ids[row, : prompt + answer], mask[row, : prompt + answer] = REAL, 1
        labels[row, prompt : prompt + answer] = 0
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}
