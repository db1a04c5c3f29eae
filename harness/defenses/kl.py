"""KL: fine-tuning that keeps the model's predictions on the user's rows near those of the aligned model.

A baseline of harmful fine-tuning in Tiansheng Huang, Sihao Hu, Ling Liu: "Vaccine", NeurIPS 2024 (arXiv 2402.01109).

With ``p_0`` the aligned model's distribution of the next token, ``p_w`` the present one's and ``g`` the user's loss:
the optimizer is given the gradient of ``g(w) + lamb * mean KL(p_0 || p_w)``, the mean over the supervised positions of
the batch. Two forward passes and one backward pass per step; the aligned model is the one under training with its
trainables put back, so no second model is held.

Deviations from the authors' code: there the softmax runs over the positions of a sequence instead of over the
vocabulary, which compares no distributions of tokens, and the sum is divided by the number of rows alone, so that the
penalty grows with vocabulary and length. Both are errors and are not offered: three of the four KL scripts run EWC, so
no published number is known to depend on them. The authors' ``lamb`` of 0.1 belongs to their scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.engine.checks import not_negative
from harness.errors import Problem
from harness.mechanisms.reference_weights import ReferenceWeights

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols import Batch, BatchProvider, DataRequirement, Learner, Metrics, Piece


@final
@dataclass(frozen=True, kw_only=True)
class KL:
    """Settings of KL.

    Attributes:
        lamb: weight of the divergence, in nats per supervised position.
    """

    name: ClassVar[str] = "kl"
    version: ClassVar[int] = 1

    lamb: float = 0.1

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Nothing besides the stage's own rows."""
        return ()

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return not_negative(self, "lamb")

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> KLStep:  # noqa: ARG002
        """Begin a run."""
        return KLStep(self, learner)


@final
class KLStep:
    """One run of KL: where it started."""

    def __init__(self, settings: KL, learner: Learner) -> None:
        """Drop the anchor."""
        self._settings = settings
        self._learner = learner
        self._start = ReferenceWeights(learner)

    def backward(self, batch: Batch) -> Metrics:
        """Write the gradient of the penalised loss; report the user's ``loss`` and the divergence."""
        from torch.nn.functional import kl_div, log_softmax

        from harness.training.learner import mean_loss

        def shares(piece: Piece) -> tuple[Tensor, Tensor, Tensor]:
            with self._start.at_reference():
                aligned = log_softmax(self._learner.predict(piece).logits.float(), dim=-1)
            prediction = self._learner.predict(piece)
            present = log_softmax(prediction.logits.float(), dim=-1)
            divergence = kl_div(present, aligned, reduction="sum", log_target=True) / prediction.positions.clamp(min=1)
            loss = mean_loss(prediction)
            return loss + self._settings.lamb * divergence, loss, divergence

        (_, loss, divergence), gradient = self._learner.accumulate(self._learner.pieces(batch), shares)
        self._learner.set_gradient(gradient)
        return {"loss": loss, "divergence": divergence}

    def state_dict(self) -> dict[str, Any]:
        """Return the anchor."""
        return {"start": self._start.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._start.load_state_dict(state["start"])
