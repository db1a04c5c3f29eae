"""Margins between two answers to the same prompts: what preference losses compare with a reference model.

The margin of a pair is the log-probability of the one answer minus that of the other, each summed over its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from harness.corpora.encode import IGNORED
from harness.corpora.transfer import on_device
from harness.mechanisms.reference_weights import ReferenceWeights
from harness.protocols import Learner, Piece
from harness.training.distributed import total_on_device


class Margins(NamedTuple):
    """Log-probabilities of a micro-batch's answers relative to the reference model, ``[rows]``.

    Attributes:
        preferred: of the preferred answers.
        other: of the others.
    """

    preferred: Tensor
    other: Tensor

    @property
    def difference(self) -> Tensor:
        """Return the margins relative to those of the reference model."""
        return self.preferred - self.other


class PreferenceLoss(NamedTuple):
    """A preference loss on a pair of batches.

    Attributes:
        loss: its mean over the pairs of all processes.
        rise: mean change of the preferred answers' log-probability since the reference.
        fall: the same for the other answers, with the opposite sign.
        won: share of the pairs whose margin has grown.
        gradient: of the loss.
        pairs: their number.
    """

    loss: Tensor
    rise: Tensor
    fall: Tensor
    won: Tensor
    gradient: list[Tensor]
    pairs: Tensor


def preference_loss(
    learner: Learner,
    reference: ReferenceWeights,
    preferred: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    losses: Callable[[Tensor], Tensor],
) -> PreferenceLoss:
    """Return the mean over the pairs of a function of the relative margin, and its gradient.

    It takes two forward passes without gradient and two with it, and two backward passes, at once for a micro-batch of
    pairs.

    Args:
        learner: the model.
        reference: the parameters of the reference model.
        preferred: this process's share of the prompts with the preferred answers.
        other: the same prompts with the other answers, in the same order.
        losses: maps the margins of a micro-batch, relative to the reference model, ``[rows]``, to its losses.
    """
    pieces = learner.pieces(preferred)
    partners = learner.pieces(other, like=pieces)
    answered = int((preferred["labels"][:, 1:] != IGNORED).any(dim=1).sum())
    pairs = total_on_device(answered, pieces[0].positions.device).clamp(min=1)

    def share(piece: Piece) -> tuple[Tensor, ...]:
        partner = partners[piece.number]
        with reference.at_reference():
            before = Margins(log_probabilities(learner, piece), log_probabilities(learner, partner))
        now = Margins(log_probabilities(learner, piece), log_probabilities(learner, partner))
        moved = Margins(now.preferred - before.preferred, now.other - before.other)
        found = losses(moved.difference)
        measured = [moved.preferred.detach(), -moved.other.detach(), (moved.difference.detach() > 0).float()]
        # A filler, of an empty share or an empty micro-batch, is no pair.
        counted = on_device(torch.tensor([float(count > 0) for count in piece.counts]), found.device)
        return tuple((each * counted).sum() / pairs for each in (found, *measured))

    (loss, rise, fall, won), gradient = learner.accumulate(pieces, share)
    return PreferenceLoss(loss, rise, fall, won, gradient, pairs)


def log_probabilities(learner: Learner, piece: Piece) -> Tensor:
    """Return the log-probability of each answer of a micro-batch, ``[rows]``."""
    prediction = learner.predict(piece)
    terms = -cross_entropy(prediction.logits.float(), prediction.targets, reduction="none")
    return torch.stack([row.sum() for row in torch.split(terms, list(piece.counts))])
