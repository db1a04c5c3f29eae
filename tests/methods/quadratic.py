"""Models of two weights whose losses are known in closed form, and a learner for them."""

from contextlib import contextmanager

import torch
from torch import nn

from harness.protocols import Piece


class TinyLearner:
    """Satisfies ``protocols.Learner`` for any module and any losses, with none of the product's arithmetic.

    Args:
        module: holds the weights.
        losses: by the batch's key ``kind``, a function of the module that gives the loss.
    """

    def __init__(self, module, losses):
        self.module = module
        self.trainables = list(module.parameters())
        self._losses = losses

    def pieces(self, batch):
        none = torch.zeros(0, dtype=torch.int64)
        rows = tuple(range(len(batch["labels"]))) if "labels" in batch else (0,)
        return [Piece(0, batch, rows=rows, positions=torch.tensor(1), supervised=none, targets=none, counts=())]

    def loss(self, piece):
        return self._losses[piece.batch["kind"]](self.module)

    def gradient(self, batch):
        (loss,), gradient = self.accumulate(self.pieces(batch), lambda piece: (self.loss(piece),))
        return loss, gradient

    def value(self, batch):
        with torch.no_grad():
            return sum(self.loss(piece) for piece in self.pieces(batch))

    def accumulate(self, pieces, shares):
        (piece,) = pieces
        sums = shares(piece)
        return [each.detach() for each in sums], [part.clone() for part in self._parts(sums[0])]

    def _parts(self, loss):
        """Return zeros where a weight is frozen for the moment or of no influence."""
        moving = [weight for weight in self.trainables if weight.requires_grad]
        parts = iter(torch.autograd.grad(loss, moving, materialize_grads=True))
        return [next(parts) if weight.requires_grad else torch.zeros_like(weight) for weight in self.trainables]

    def norm(self, tensors):
        return torch.cat([tensor.flatten() for tensor in tensors]).norm()

    @contextmanager
    def perturbed(self, direction, scale):
        kept = [weight.detach().clone() for weight in self.trainables]
        with torch.no_grad():
            for weight, part in zip(self.trainables, direction, strict=True):
                weight.add_(scale * part)
        yield
        with torch.no_grad():
            for weight, copy in zip(self.trainables, kept, strict=True):
                weight.copy_(copy)

    def set_gradient(self, gradient):
        for weight, part in zip(self.trainables, gradient, strict=True):
            weight.grad = None if part is None else part.clone()


class ModelRef(nn.Module):
    """Two weights, in two tensors so that norms must run over both."""

    def __init__(self, first, second):
        super().__init__()
        self.first = nn.Parameter(torch.tensor([first]))
        self.second = nn.Parameter(torch.tensor([second]))


class Attention(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, rows):
        return self.weight * rows, None


class Layer(nn.Module):
    def __init__(self, attention, readout):
        super().__init__()
        self.self_attn = Attention(attention)
        self.readout = nn.Parameter(torch.tensor(readout))

    def forward(self, rows):
        return self.readout * self.self_attn(rows)[0]


class Decoder(nn.Module):
    """One layer: ``y = readout * e`` with the attention output ``e = attention * x``."""

    def __init__(self, attention, readout):
        super().__init__()
        self.layers = nn.ModuleList([Layer(attention, readout)])

    def get_decoder(self):
        return self

    def forward(self, rows):
        return self.layers[0](rows)


class Harmful:
    """Gives the harmful batch, and counts."""

    def __init__(self):
        self.roles = []

    def next(self, role):
        self.roles.append(role)
        return {"kind": "harmful"}


def half_square(rows):
    return 0.5 * rows.square().sum()
