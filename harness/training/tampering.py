"""An adversary that fine-tunes a copy of the trainables, and how far the copy still prefers to refuse.

The parts of TAR: Rishub Tamirisa et al., "Tamper-Resistant Safeguards for Open-Weight LLMs", ICLR 2025 (arXiv
2408.00761). The preference is that of Rafailov et al., "Direct Preference Optimization", NeurIPS 2023 (arXiv
2305.18290).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from harness.corpora.batches import Pair
from harness.corpora.encode import IGNORED
from harness.protocols import Learner, Piece
from harness.training.decoder import kept_outputs, layers
from harness.training.noise import real_positions
from harness.training.processes import add_up


class Adversary:
    """Fine-tunes a copy of the present trainables with AdamW, without weight decay; the model itself stays as it is.

    Attributes:
        weights: the copy.

    Args:
        learner: the model.
        learning_rate: of the adversary.
    """

    def __init__(self, learner: Learner, learning_rate: float) -> None:
        """Copy the trainables."""
        self.weights = [trainable.detach().clone() for trainable in learner.trainables]
        self._learner = learner
        self._optimizer = torch.optim.AdamW(self.weights, lr=learning_rate, weight_decay=0.0)

    def step(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Take one step; return the loss before it."""
        with self._learner.placed(self.weights):
            loss, gradient = self._learner.gradient(batch)
        for weight, part in zip(self.weights, gradient, strict=True):
            weight.grad = part
        self._optimizer.step()
        return loss


class Preference:
    """The loss ``-log sigmoid(beta * (margin - reference margin))``, averaged over the rows of a pair of batches.

    A margin is the log-likelihood of the refusal less that of the harmful answer, summed over the tokens of each.

    Args:
        learner: the model.
        pair: this process's rows.
        reference: the trainables that the margin is compared with.
        beta: how fast the loss falls with the margin.
    """

    def __init__(self, learner: Learner, pair: Pair, reference: Sequence[Tensor], beta: float) -> None:
        """Take the reference margin: a forward pass of each batch."""
        self._learner = learner
        self._beta = beta
        self._rows = torch.tensor(len(pair.refusal["labels"]), device=pair.refusal["labels"].device)
        add_up(self._rows)
        self._pieces = learner.pieces(pair.refusal)
        self._partners = learner.pieces(pair.harmful)
        with learner.placed(reference), torch.no_grad():
            self._reference = [self._margins(piece) for piece in self._pieces]

    def gradient(self, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the loss at given values of the trainables, and its gradient."""

        def share(piece: Piece) -> tuple[Tensor]:
            losses = -logsigmoid(self._beta * (self._margins(piece) - self._reference[piece.place]))
            # A row that stands for none has no loss.
            return (losses[: piece.rows.stop - piece.rows.start].sum() / self._rows,)

        with self._learner.placed(weights):
            (loss,), gradient = self._learner.accumulate(self._pieces, share)
        return loss, gradient

    def _margins(self, piece: Piece) -> Tensor:
        """Return the margins of a piece's rows, whose refusals and harmful answers are two pieces."""
        return self._likelihoods(piece) - self._likelihoods(self._partners[piece.place])

    def _likelihoods(self, piece: Piece) -> Tensor:
        prediction = self._learner.predict(piece)
        terms = -cross_entropy(prediction.logits.float(), prediction.targets, reduction="none")
        tokens = (piece.batch["labels"][:, 1:] != IGNORED).sum(dim=1).tolist()
        return torch.stack([row.sum() for row in torch.split(terms, tokens)])


class Retained(NamedTuple):
    """What shall not be lost, at the present weights.

    Attributes:
        gradient: of ``loss + drift_scale * drift``.
        metrics: ``loss`` of the batch; ``drift``, how far the layers' outputs are from the reference's: the L2 distance
            of two vectors, averaged over layers and positions.
    """

    gradient: list[Tensor]
    metrics: dict[str, Tensor | float]


class Retention:
    """Measures the loss and the drift of the hidden states from those of reference weights.

    Args:
        learner: the model.
        reference: the trainables that the hidden states are compared with.
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

    def measure(self, batch: Mapping[str, Tensor]) -> Retained:
        """Take a forward pass with the reference and both passes with the present weights; no hook remains."""
        count = real_positions(batch).sum()
        add_up(count)

        def shares(piece: Piece) -> tuple[Tensor, Tensor, Tensor]:
            with self._learner.placed(self._reference), torch.no_grad(), kept_outputs(self._layers) as before:
                self._learner.predict(piece)
            with kept_outputs(self._layers) as after:
                loss = self._learner.loss(piece)
            positions = real_positions(piece.batch)
            distances = [
                torch.linalg.vector_norm((after[place] - before[place])[positions].float(), dim=-1).sum()
                for place in self._layers
            ]
            drift = torch.stack(distances).mean() / count.clamp(min=1)
            return loss + self._drift_scale * drift, loss, drift

        (_, loss, drift), gradient = self._learner.accumulate(self._learner.pieces(batch), shares)
        return Retained(gradient, {"loss": loss, "drift": drift})
