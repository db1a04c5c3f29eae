"""Constrained SFT: fine-tuning in which an answer token counts less the more its probability has risen.

Xiangyu Qi, Ashwinee Panda, Kaifeng Lyu, Xiao Ma, Subhrajit Roy, Ahmad Beirami, Prateek Mittal, Peter Henderson: "Safety
Alignment Should Be Made More Than Just a Few Tokens Deep", ICLR 2025 (arXiv 2406.05946).

For the t-th token of an answer, counted from 1, let ``D_t`` be its log-probability under the current model minus that
under the aligned one. The loss is the mean over the answer tokens of ``-(2 / beta_t) * log sigmoid(beta_t * D_t)``. Its
gradient is that of the cross-entropy with each token weighted by ``w_t = 2 * (1 - sigmoid(beta_t * D_t))``, taken as
constant; in the authors' code, and here, no weight is below ``floor``. While the model is the aligned one every weight
is 1, so the first step is that of plain training (without dropout in the adapter). A large ``beta_t`` holds a token
near the aligned model: here the first answer token and the four after it.

Two forward passes and one backward pass per step; the aligned log-probabilities are computed by the same model with its
initial trainable parameters, so no second copy is kept.

Deviations from the authors' code: the aligned log-probabilities are computed in every step instead of once for all
examples, with the same result. The equation in the paper sums over the tokens of an example; the code averages over all
answer tokens of a batch, as is done here. The published runs are full fine-tuning with Adam's beta1 at 0.5 and ten
warm-up steps, which are settings of the budget (``finetune.budget.adam_beta1``).

Fidelity: hand-computed only. Equation and defaults are those of the authors' code (commit fb1749e); the weights of a
six-token answer and the gradient are computed by hand in the tests; no vectors of the authors' trainer were available.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.corpora.transfer import on_device
from harness.engine.checks import counts, positive, shares
from harness.errors import Problem
from harness.mechanisms.reference_weights import ReferenceWeights

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols import Batch, BatchProvider, DataRequirement, Learner, Metrics, Piece, Prediction


@final
@dataclass(frozen=True, kw_only=True)
class ConstrainedSFT:
    """Settings of constrained SFT.

    Attributes:
        beta: strength of the constraint on an answer token after the early ones.
        first_factor: the first answer token has ``beta * first_factor``: 0.5.
        early_factor: the other early answer tokens have ``beta * early_factor``: 2.
        early_tokens: number of early answer tokens, the first one included.
        floor: smallest weight of a token.
    """

    name: ClassVar[str] = "constrained_sft"
    version: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 1
    works_on_shards: ClassVar[bool] = True

    beta: float = 0.1
    first_factor: float = 5.0
    early_factor: float = 20.0
    early_tokens: int = 5
    floor: float = 1e-3

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Only the stage's own examples."""
        return ()

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return [
            *positive(self, "beta", "first_factor", "early_factor"),
            *counts(self, "early_tokens"),
            *shares(self, "floor"),
        ]

    def betas(self, answers: Sequence[int]) -> list[float]:
        """Return the strength of each answer token.

        Args:
            answers: the number of supervised tokens of each example.

        Returns:
            One number per token, example after example.
        """
        early = [self.beta * self.first_factor] + [self.beta * self.early_factor] * (self.early_tokens - 1)
        return [early[place] if place < len(early) else self.beta for count in answers for place in range(count)]

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> ConstrainedSFTStep:  # noqa: ARG002
        """Start a run."""
        return ConstrainedSFTStep(self, learner)


@final
class ConstrainedSFTStep:
    """One run of constrained SFT; its state is the initial parameters."""

    def __init__(self, settings: ConstrainedSFT, learner: Learner) -> None:
        """Copy the initial parameters."""
        self._settings = settings
        self._learner = learner
        self._start = ReferenceWeights(learner)

    def backward(self, batch: Batch) -> Metrics:
        """Write the gradient of the weighted loss; report plain ``loss``, constrained loss and mean weight."""

        def terms(piece: Piece) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            from torch.nn.functional import softplus

            with self._start.at_reference():
                aligned = _losses(self._learner.predict(piece))
            prediction = self._learner.predict(piece)
            losses = _losses(prediction)
            plain = losses.detach()
            beta = self._beta(piece, like=plain)
            rise = beta * (aligned - plain)
            weights = (2 * (1 - rise.sigmoid())).clamp(min=self._settings.floor)
            constrained = 2 / beta * softplus(-rise)
            positions = prediction.positions.clamp(min=1)
            weighted = (weights * losses).sum() / positions
            return weighted, plain.sum() / positions, constrained.sum() / positions, weights.sum() / positions

        (_, loss, constrained, weight), gradient = self._learner.accumulate(self._learner.pieces(batch), terms)
        self._learner.set_gradient(gradient)
        return {"loss": loss, "constrained_loss": constrained, "token_weight": weight}

    def _beta(self, piece: Piece, *, like: Tensor) -> Tensor:
        import torch

        return on_device(torch.tensor(self._settings.betas(piece.counts), dtype=like.dtype), like.device)

    def state_dict(self) -> dict[str, Any]:
        """Return the initial parameters."""
        return {"start": self._start.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._start.load_state_dict(state["start"])


def _losses(prediction: Prediction) -> Tensor:
    """Return the cross-entropy at each supervised position, ``[positions]``."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(prediction.logits.float(), prediction.targets, reduction="none")
