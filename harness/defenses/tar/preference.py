"""TAR's tamper-resistance loss: DPO with the refusal as chosen and the harmful answer as rejected response.

Rishub Tamirisa et al., "Tamper-Resistant Safeguards for Open-Weight LLMs", ICLR 2025 (arXiv 2408.00761). DPO: Rafailov
et al., "Direct Preference Optimization", NeurIPS 2023 (arXiv 2305.18290).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from harness.corpora.batches import Pair
from harness.protocols import Learner, Piece
from harness.training.distributed import total_on_device


class Preference:
    """The DPO loss ``-log sigmoid(beta * (margin - reference margin))``, averaged over a pair of batches.

    A margin is the log-probability of the refusal minus that of the harmful answer, each summed over its tokens.

    Args:
        learner: the model.
        pair: this process's share of the pair of batches.
        reference: trainable parameters of the reference model.
        beta: the DPO temperature.
    """

    def __init__(self, learner: Learner, pair: Pair, reference: Sequence[Tensor], beta: float) -> None:
        """Compute the reference margins, with one forward pass per batch."""
        self._learner = learner
        self._beta = beta
        self._chosen = learner.pieces(pair.refusal)
        self._rejected = learner.pieces(pair.harmful, like=self._chosen)
        self._rows = total_on_device(len(pair.refusal["labels"]), self._chosen[0].positions.device)
        with learner.with_weights(reference), torch.no_grad():
            self._reference = [self._margins(piece) for piece in self._chosen]

    def gradient(self, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the loss at the given values of the trainable parameters, and its gradient."""

        def share(piece: Piece) -> tuple[Tensor]:
            losses = -logsigmoid(self._beta * (self._margins(piece) - self._reference[piece.number]))
            # The filler example of an empty micro-batch has no loss.
            return (losses[: len(piece.rows)].sum() / self._rows,)

        with self._learner.with_weights(weights):
            (loss,), gradient = self._learner.accumulate(self._chosen, share)
        return loss, gradient

    def _margins(self, piece: Piece) -> Tensor:
        """Return the margins of a micro-batch of refusals and the micro-batch of their harmful answers, ``[batch]``."""
        return self._log_probabilities(piece) - self._log_probabilities(self._rejected[piece.number])

    def _log_probabilities(self, piece: Piece) -> Tensor:
        """Return the log-probability of each example's answer, ``[batch]``."""
        prediction = self._learner.predict(piece)
        terms = -cross_entropy(prediction.logits.float(), prediction.targets, reduction="none")
        return torch.stack([row.sum() for row in torch.split(terms, list(piece.counts))])
