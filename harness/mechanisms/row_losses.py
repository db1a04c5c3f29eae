"""Losses of single examples: the mean over the supervised tokens of each, whatever the micro-batches and processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from harness.corpora.encode import PLACES

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols import Batch, Gradient, Learner, Piece, Prediction


class RowLosses(NamedTuple):
    """The weighted losses of a batch of the stage's own examples.

    Attributes:
        mean: mean over the batch of weight times loss.
        gradient: of that mean, with the weights as constants.
        losses: the loss of each example, 0 for those that are not in the batch, ``[examples]``.
        present: 1 for each example of the batch, 0 for the others, ``[examples]``.
    """

    mean: Tensor
    gradient: Gradient
    losses: Tensor
    present: Tensor


def row_losses(prediction: Prediction, piece: Piece) -> Tensor:
    """Return the mean cross-entropy of each example of a micro-batch, ``[rows]``; 0 without a supervised token."""
    import torch
    from torch.nn.functional import cross_entropy

    losses = cross_entropy(prediction.logits.float(), prediction.targets, reduction="none")
    return torch.stack([part.sum() / max(len(part), 1) for part in torch.split(losses, list(piece.counts))])


def mean_row_loss(learner: Learner, batch: Batch) -> tuple[Tensor, Gradient]:
    """Return the mean over a global batch of the losses of its examples, and its gradient."""

    def terms(piece: Piece) -> tuple[Tensor, Tensor]:
        losses = row_losses(learner.predict(piece), piece)
        return losses.sum(), losses.new_tensor(sum(count > 0 for count in piece.counts))

    (total, rows), gradient = learner.accumulate(learner.pieces(batch), terms)
    return total / rows, [part / rows for part in gradient]


def weighted_row_losses(learner: Learner, batch: Batch, weights: Tensor) -> RowLosses:
    """Return the losses of a global batch of the stage's own examples, and the gradient of their weighted mean.

    Args:
        learner: the model.
        batch: the examples, with their places.
        weights: one for each of the stage's own examples, ``[examples]``.
    """
    places = batch[PLACES].tolist()

    def terms(piece: Piece) -> tuple[Tensor, Tensor, Tensor]:
        losses = row_losses(learner.predict(piece), piece)
        supervised = [row for row, count in enumerate(piece.counts) if count]
        own = [places[piece.rows[row]] for row in supervised]
        spread, present = weights.new_zeros(len(weights)), weights.new_zeros(len(weights))
        spread[own] = losses.detach()[supervised]
        present[own] = 1.0
        return (weights[own] * losses[supervised]).sum(), spread, present

    (total, losses, present), gradient = learner.accumulate(learner.pieces(batch), terms)
    rows = present.sum()
    return RowLosses(total / rows, [part / rows for part in gradient], losses, present)
