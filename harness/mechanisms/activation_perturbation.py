"""Vaccine's perturbation: attention outputs shifted along the gradient that hurts most.

Tiansheng Huang, Sihao Hu, Ling Liu: "Vaccine: Perturbation-aware Alignment for Large Language Models against Harmful
Fine-tuning Attack", NeurIPS 2024 (arXiv 2402.01109). With ``e_l`` the output of attention block ``l``:

1. ``G_l = df / de_l`` on the batch;
2. ``delta_l = rho * G_l / (||G|| + 1e-7)`` with one norm over all layers, rows and positions of the global batch;
3. the update is the gradient of ``f`` with ``e_l + delta_l`` in place of ``e_l``, ``delta`` held constant.

A batch in pieces is swept twice, once for each gradient; ``G`` of all its rows is held in between.

Deviations from the authors' code: attention blocks are found by where they sit in the decoder, not by a list of
classes; the gradient of the outputs is asked for instead of caught by the deprecated module backward hooks; the norm
covers all pieces and processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from harness.errors import ModelError
from harness.models.decoder import attention_blocks, kept_outputs, outputs
from harness.protocols import Learner, Piece
from harness.training.distributed import all_reduce_sum
from harness.training.gradients import EPSILON


class Perturbed(NamedTuple):
    """The gradient under the perturbation.

    Attributes:
        gradient: of the loss with shifted attention outputs, with respect to the trainables.
        metrics: ``loss`` without the shift; ``perturbed_loss`` with it; ``activation_gradient_norm`` ||G||.
    """

    gradient: list[Tensor]
    metrics: dict[str, Tensor | float]


class Perturbation:
    """Takes gradients under Vaccine's perturbation.

    Args:
        learner: the model.
        rho: length of the perturbation over the whole global batch.

    Raises:
        ModelError: the attention blocks of the model cannot be found.
    """

    def __init__(self, learner: Learner, rho: float) -> None:
        """Find the attention blocks."""
        self._learner = learner
        self._rho = rho
        self._blocks = dict(enumerate(attention_blocks(learner.module)))

    @property
    def layers(self) -> int:
        """How many layers the model has."""
        return len(self._blocks)

    def gradient(self, batch: Mapping[str, Tensor], *, places: Iterable[int] | None = None) -> Perturbed:
        """Take both passes on one batch; no hook remains.

        Args:
            batch: as for ``Learner.gradient``.
            places: the layers that are perturbed, counted from 0; None is all. The norm is over these.
        """
        blocks = self._blocks if places is None else {place: self._blocks[place] for place in places}
        pieces = self._learner.pieces(batch)
        loss, collected = self._sensitivities(pieces, blocks)
        norm = _norm(part for each in collected for part in each.values())
        # One after the other, so that there are never two copies of all; not in place, as some may be one tensor.
        for each in collected:
            for place, part in each.items():
                each[place] = part * (self._rho / (norm + EPSILON))
        present: dict[int, Tensor] = {}

        def shift(place: int, output: Tensor) -> Tensor:
            return output + present[place] if place in present else output

        def perturbed(piece: Piece) -> tuple[Tensor]:
            nonlocal present
            present = collected[piece.number]
            return (self._learner.loss(piece),)

        with outputs(blocks, shift):
            (perturbed_loss,), gradient = self._learner.accumulate(pieces, perturbed)
        return Perturbed(gradient, {"loss": loss, "perturbed_loss": perturbed_loss, "activation_gradient_norm": norm})

    def norms(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return ``||df / de_l||`` of every layer over the global batch, ``[layers]``, at the cost of one pass."""
        loss, collected = self._sensitivities(self._learner.pieces(batch), self._blocks)
        parts = [[each[place] for each in collected if place in each] for place in self._blocks]
        return torch.stack([_norm(of_layer) if of_layer else torch.zeros_like(loss) for of_layer in parts])

    def _sensitivities(
        self, pieces: Sequence[Piece], blocks: Mapping[int, Module]
    ) -> tuple[Tensor, list[dict[int, Tensor]]]:
        """Return the loss and, by piece, its gradient with respect to the output of each block that it reaches."""
        losses, collected = [], []
        for piece in pieces:
            with kept_outputs(blocks) as kept:
                share = self._learner.loss(piece)
            reached = {place: output for place, output in kept.items() if output.requires_grad}
            # Only what these need is computed: no gradient of a weight, and nothing below the lowest of them.
            parts = torch.autograd.grad(share, list(reached.values()), allow_unused=True) if reached else ()
            collected.append({place: part for place, part in zip(reached, parts, strict=True) if part is not None})
            losses.append(share.detach().clone())
        if not any(collected):
            raise ModelError(
                "no gradient reached an attention output; expected at least one trainable parameter at or below an "
                "attention block, for example an adapter on its projections"
            )
        loss = torch.stack(losses).sum()
        all_reduce_sum(loss)
        return loss, collected


def _norm(parts: Iterable[Tensor]) -> Tensor:
    """Return the L2 norm over tensors of which every process holds its own rows."""
    squares = torch.stack([torch.linalg.vector_norm(part, dtype=torch.float32) for part in parts]).square().sum()
    all_reduce_sum(squares)
    return squares.sqrt()
