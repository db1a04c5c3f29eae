"""TAR's retention term: the alignment loss and the drift of the hidden states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from harness.mechanisms.row_noise import real_positions
from harness.models.decoder import kept_outputs, layers
from harness.protocols import Learner, Piece
from harness.training.distributed import total_on_device


class RetentionGradient(NamedTuple):
    """Gradient and metrics at the current weights.

    Attributes:
        gradient: of ``loss + drift_scale * drift``.
        metrics: ``loss`` of the batch; ``drift``, the L2 distance between the layers' outputs and those of the
            reference, averaged over layers and positions.
    """

    gradient: list[Tensor]
    metrics: dict[str, Tensor | float]


class Retention:
    """Computes the loss and the drift of the hidden states from those at the reference weights.

    Args:
        learner: the model.
        reference: trainable parameters of the reference model.
        drift_scale: weight of the drift.

    Raises:
        ModelError: the layers of the model cannot be found.
    """

    def __init__(self, learner: Learner, reference: Sequence[Tensor], drift_scale: float) -> None:
        """Find the layers."""
        self._learner = learner
        self._reference = reference
        self._drift_scale = drift_scale
        self._layers = dict(enumerate(layers(learner.module)))

    def gradient(self, batch: Mapping[str, Tensor]) -> RetentionGradient:
        """Return the gradient, with a forward pass at the reference and both passes at the current weights."""
        real = real_positions(batch)
        pieces = self._learner.pieces(batch)
        count = total_on_device(int(real.sum()), pieces[0].positions.device)

        def shares(piece: Piece) -> tuple[Tensor, Tensor, Tensor]:
            with self._learner.with_weights(self._reference), torch.no_grad(), kept_outputs(self._layers) as before:
                self._learner.predict(piece)
            with kept_outputs(self._layers) as after:
                loss = self._learner.loss(piece)
            positions = piece.where(real)
            distances = [
                torch.linalg.vector_norm(_at(positions, after[layer] - before[layer]).float(), dim=-1).sum()
                for layer in self._layers
            ]
            drift = torch.stack(distances).mean() / count.clamp(min=1)
            return loss + self._drift_scale * drift, loss, drift

        (_, loss, drift), gradient = self._learner.accumulate(pieces, shares)
        return RetentionGradient(gradient, {"loss": loss, "drift": drift})


def _at(positions: Tensor, states: Tensor) -> Tensor:
    """Return ``[batch, time, hidden]`` at some positions, ``[positions, hidden]``."""
    return states.flatten(0, 1).index_select(0, positions)
