"""The harmful batch of a step: its states, their mean, and the gradient of a loss that depends on both.

The mean is that of the whole batch, over all micro-batches and processes. So the states are computed first, without
gradient; the loss is a function of them, and a second pass takes its gradient from the states to the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from harness.mechanisms.hidden_states import HiddenStates, answer_positions, total
from harness.mechanisms.reference_weights import ReferenceWeights
from harness.protocols import Learner, Piece
from harness.training.distributed import all_reduce_sum


class Gathered(NamedTuple):
    """A loss on harmful states, without its weight, and the gradient of everything that depends on them."""

    loss: Tensor
    gradient: list[Tensor]


class HarmfulStates:
    """The hidden states at the answers of a harmful batch, now and before the training.

    Args:
        learner: the model.
        reference: the parameters before the training.
        states: reads hidden states.
        batch: this process's share of the batch.
        layers: the numbers of the states that the loss is computed on.
    """

    def __init__(
        self,
        learner: Learner,
        reference: ReferenceWeights,
        states: HiddenStates,
        batch: Mapping[str, Tensor],
        layers: Sequence[int],
    ) -> None:
        """Compute the states and their mean, with two forward passes."""
        self._learner = learner
        self._states = states
        self._layers = layers
        self._numbers = range(1, states.depth + 1)
        self._positions = answer_positions(batch)
        self._pieces = learner.pieces(batch)
        self._count = total(self._positions, self._pieces)
        with torch.no_grad():
            self._now = [self._at(piece, self._numbers) for piece in self._pieces]
        with reference.at_reference():
            self._before = [self._at(piece, layers) for piece in self._pieces]
        self.centers = [
            torch.stack([own[number].sum(dim=0) for own in self._now]).sum(dim=0) for number in self._numbers
        ]
        all_reduce_sum(*self.centers)
        for center in self.centers:
            center.div_(self._count)

    def gradient(
        self, losses: Callable[[Tensor, Tensor, Tensor], Tensor], weight: float, pulls: Sequence[Tensor]
    ) -> Gathered:
        """Return the mean of a loss over positions and layers, and the gradient of ``weight`` times it.

        Args:
            losses: maps states now and before, ``[positions, hidden]``, and their mean now, ``[hidden]``, to losses,
                ``[positions]``.
            weight: of the mean.
            pulls: gradients of other losses with respect to the means of all states, summed over all processes; they
                are taken to the weights too.
        """
        means = {
            number: center.detach().requires_grad_() for number, center in zip(self._numbers, self.centers, strict=True)
        }
        leaves = [{layer: own[layer].requires_grad_() for layer in self._layers} for own in self._now]
        scale = 1 / (self._count * len(self._layers))
        values = [
            torch.stack([losses(own[layer], before[layer], means[layer]).sum() for layer in self._layers]).sum() * scale
            for own, before in zip(leaves, self._before, strict=True)
        ]
        inputs = [means[layer] for layer in self._layers] + [own[layer] for own in leaves for layer in self._layers]
        parts = list(torch.autograd.grad(weight * torch.stack(values).sum(), inputs))
        to_means, to_states = parts[: len(self._layers)], parts[len(self._layers) :]
        all_reduce_sum(*to_means)
        # Every state is a part of its mean.
        shared = {number: pull / self._count for number, pull in zip(self._numbers, pulls, strict=True)}
        for layer, part in zip(self._layers, to_means, strict=True):
            shared[layer] = shared[layer] + part / self._count
        width = len(self._layers)
        own = [
            dict(zip(self._layers, to_states[at : at + width], strict=True)) for at in range(0, len(to_states), width)
        ]

        def share(piece: Piece) -> tuple[Tensor, Tensor]:
            terms = [
                (state * (shared[number] + own[piece.number].get(number, 0))).sum()
                for number, state in self._at(piece, self._numbers).items()
            ]
            return torch.stack(terms).sum(), values[piece.number].detach()

        (_, loss), gradient = self._learner.accumulate(self._pieces, share)
        return Gathered(loss, gradient)

    def _at(self, piece: Piece, numbers: Sequence[int]) -> dict[int, Tensor]:
        return self._states.at(piece, self._positions, numbers).states
