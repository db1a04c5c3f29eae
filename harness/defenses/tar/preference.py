"""An adversary that fine-tunes a copy of the trainables, and how far the copy still prefers to refuse.

The parts of TAR: Rishub Tamirisa et al., "Tamper-Resistant Safeguards for Open-Weight LLMs", ICLR 2025 (arXiv
2408.00761). The preference is that of Rafailov et al., "Direct Preference Optimization", NeurIPS 2023 (arXiv
2305.18290).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from harness.corpora.batches import Pair
from harness.corpora.encode import IGNORED
from harness.protocols import Learner, Piece
from harness.training.distributed import all_reduce_sum


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
        all_reduce_sum(self._rows)
        self._pieces = learner.pieces(pair.refusal)
        self._partners = learner.pieces(pair.harmful)
        with learner.with_weights(reference), torch.no_grad():
            self._reference = [self._margins(piece) for piece in self._pieces]

    def gradient(self, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the loss at given values of the trainables, and its gradient."""

        def share(piece: Piece) -> tuple[Tensor]:
            losses = -logsigmoid(self._beta * (self._margins(piece) - self._reference[piece.number]))
            # A row that stands for none has no loss.
            return (losses[: piece.rows.stop - piece.rows.start].sum() / self._rows,)

        with self._learner.with_weights(weights):
            (loss,), gradient = self._learner.accumulate(self._pieces, share)
        return loss, gradient

    def _margins(self, piece: Piece) -> Tensor:
        """Return the margins of a piece's rows, whose refusals and harmful answers are two pieces."""
        return self._likelihoods(piece) - self._likelihoods(self._partners[piece.number])

    def _likelihoods(self, piece: Piece) -> Tensor:
        prediction = self._learner.predict(piece)
        terms = -cross_entropy(prediction.logits.float(), prediction.targets, reduction="none")
        tokens = (piece.batch["labels"][:, 1:] != IGNORED).sum(dim=1).tolist()
        return torch.stack([row.sum() for row in torch.split(terms, tokens)])
