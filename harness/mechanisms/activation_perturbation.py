"""Vaccine's activation perturbation: attention outputs are shifted along the gradient of the loss.

Tiansheng Huang, Sihao Hu, Ling Liu: "Vaccine: Perturbation-aware Alignment for Large Language Models against Harmful
Fine-tuning Attack", NeurIPS 2024 (arXiv 2402.01109). With ``e_l`` the output of attention block ``l``:

1. ``G_l = df / de_l`` on the batch;
2. ``delta_l = rho * G_l / (||G|| + 1e-7)`` with one norm over all layers, examples and positions of the global batch;
3. the update is the gradient of ``f`` with ``e_l + delta_l`` in place of ``e_l``, ``delta`` held constant.

Both gradients take one pass over the micro-batches; ``G`` of the whole batch is kept between the two passes.

Deviations from the authors' code: attention blocks are located by their position in the decoder, not by a list of
classes; the gradient of the outputs is computed with ``autograd.grad`` instead of the deprecated module backward hooks;
the norm covers all micro-batches and processes.
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


class PerturbedGradient(NamedTuple):
    """The gradient under the perturbation.

    Attributes:
        gradient: of the perturbed loss, with respect to the trainable parameters.
        metrics: ``loss``, unperturbed; ``perturbed_loss``; ``activation_gradient_norm`` ||G||.
    """

    gradient: list[Tensor]
    metrics: dict[str, Tensor | float]


class ActivationPerturbation:
    """Computes gradients under Vaccine's perturbation.

    Args:
        learner: the model.
        rho: L2 norm of the perturbation over the global batch.

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
        """The number of layers."""
        return len(self._blocks)

    def gradient(self, batch: Mapping[str, Tensor], *, layers: Iterable[int] | None = None) -> PerturbedGradient:
        """Return the gradient under the perturbation, after two passes over the batch.

        Args:
            batch: as for ``Learner.gradient``.
            layers: indices of the perturbed layers, counted from 0; None perturbs all. The norm is over these layers.
        """
        blocks = self._blocks if layers is None else {layer: self._blocks[layer] for layer in layers}
        pieces = self._learner.pieces(batch)
        loss, collected = self._activation_gradients(pieces, blocks)
        norm = _norm(part for each in collected for part in each.values())
        # One tensor at a time, so that two full copies never exist; not in place, because autograd may return the same
        # tensor for several outputs.
        for each in collected:
            for layer, part in each.items():
                each[layer] = part * (self._rho / (norm + EPSILON))
        deltas: dict[int, Tensor] = {}

        def shift(layer: int, output: Tensor) -> Tensor:
            return output + deltas[layer] if layer in deltas else output

        def perturbed(piece: Piece) -> tuple[Tensor]:
            nonlocal deltas
            deltas = collected[piece.number]
            return (self._learner.loss(piece),)

        with outputs(blocks, shift):
            (perturbed_loss,), gradient = self._learner.accumulate(pieces, perturbed)
        metrics: dict[str, Tensor | float] = {
            "loss": loss,
            "perturbed_loss": perturbed_loss,
            "activation_gradient_norm": norm,
        }
        return PerturbedGradient(gradient, metrics)

    def norms(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return ``||df / de_l||`` of every layer over the global batch, ``[layers]``; takes one pass."""
        loss, collected = self._activation_gradients(self._learner.pieces(batch), self._blocks)
        parts = [[each[layer] for each in collected if layer in each] for layer in self._blocks]
        return torch.stack([_norm(of_layer) if of_layer else torch.zeros_like(loss) for of_layer in parts])

    def _activation_gradients(
        self, pieces: Sequence[Piece], blocks: Mapping[int, Module]
    ) -> tuple[Tensor, list[dict[int, Tensor]]]:
        """Return the loss and, per micro-batch, its gradient with respect to each block's output."""
        losses, collected = [], []
        for piece in pieces:
            with kept_outputs(blocks) as kept:
                share = self._learner.loss(piece)
            reached = {layer: output for layer, output in kept.items() if output.requires_grad}
            # The backward pass computes no weight gradients and stops at the lowest of these outputs.
            parts = torch.autograd.grad(share, list(reached.values()), allow_unused=True) if reached else ()
            collected.append({layer: part for layer, part in zip(reached, parts, strict=True) if part is not None})
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
    """Return the global L2 norm of tensors that are split over the processes by example."""
    squares = torch.stack([torch.linalg.vector_norm(part, dtype=torch.float32) for part in parts]).square().sum()
    all_reduce_sum(squares)
    return squares.sqrt()
