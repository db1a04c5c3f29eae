"""Vaccine's perturbation: attention outputs shifted along the gradient that hurts most.

Tiansheng Huang, Sihao Hu, Ling Liu: "Vaccine: Perturbation-aware Alignment for Large Language Models against Harmful
Fine-tuning Attack", NeurIPS 2024 (arXiv 2402.01109). With ``e_l`` the output of attention block ``l``:

1. ``G_l = df / de_l`` on the batch;
2. ``delta_l = rho * G_l / (||G|| + 1e-7)`` with one norm over all layers, rows and positions of the global batch;
3. the update is the gradient of ``f`` with ``e_l + delta_l`` in place of ``e_l``, ``delta`` held constant.

Deviations from the authors' code: attention blocks are found by where they sit in the decoder, not by a list of
classes; the gradient of the outputs is asked for instead of caught by the deprecated module backward hooks; the norm
covers all processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from harness.errors import ModelError
from harness.protocols import Learner
from harness.training.attenuation import EPSILON
from harness.training.decoder import attention_blocks, kept_outputs, outputs
from harness.training.processes import add_up


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
        loss, collected = self._sensitivities(batch, blocks)
        norm = _norm(collected.values())
        # One after the other, so that there are never two copies of all; not in place, as some may be one tensor.
        for place, part in collected.items():
            collected[place] = part * (self._rho / (norm + EPSILON))

        def shift(place: int, output: Tensor) -> Tensor:
            return output + collected[place] if place in collected else output

        with outputs(blocks, shift):
            perturbed_loss, gradient = self._learner.gradient(batch)
        return Perturbed(gradient, {"loss": loss, "perturbed_loss": perturbed_loss, "activation_gradient_norm": norm})

    def norms(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return ``||df / de_l||`` of every layer over the global batch, ``[layers]``, at the cost of one pass."""
        _, collected = self._sensitivities(batch, self._blocks)
        zero = torch.zeros((), device=next(iter(collected.values())).device)
        return torch.stack([_norm([collected[place]]) if place in collected else zero for place in self._blocks])

    def _sensitivities(
        self, batch: Mapping[str, Tensor], blocks: Mapping[int, Module]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Return the loss, and its gradient with respect to the output of each block that it reaches."""
        with kept_outputs(blocks) as kept:
            share = self._learner.loss(batch)
        reached = {place: output for place, output in kept.items() if output.requires_grad}
        # Only what these need is computed: no gradient of a weight, and nothing below the lowest of them.
        parts = torch.autograd.grad(share, list(reached.values()), allow_unused=True) if reached else ()
        collected = {place: part for place, part in zip(reached, parts, strict=True) if part is not None}
        if not collected:
            raise ModelError(
                "no gradient reached an attention output; expected at least one trainable parameter at or below an "
                "attention block, for example an adapter on its projections"
            )
        loss = share.detach()
        add_up(loss)
        return loss, collected


def _norm(parts: Iterable[Tensor]) -> Tensor:
    """Return the L2 norm over tensors of which every process holds its own rows."""
    squares = torch.stack([torch.linalg.vector_norm(part, dtype=torch.float32) for part in parts]).square().sum()
    add_up(squares)
    return squares.sqrt()
