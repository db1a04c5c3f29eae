"""KL: fine-tuning with a KL penalty between the predictions of the model and of the aligned model.

A baseline of harmful fine-tuning in Tiansheng Huang, Sihao Hu, Ling Liu: "Vaccine", NeurIPS 2024 (arXiv 2402.01109).

With ``p_0`` the next-token distribution of the aligned model, ``p_w`` that of the current model and ``g`` the user's
loss, the gradient is that of ``g(w) + lamb * mean KL(p_0 || p_w)``, with the mean over the supervised positions of the
batch. Two forward passes and one backward pass per step; the aligned predictions are computed by the same model with
its initial trainable parameters, so no second copy is kept.

Deviations from the authors' code: their softmax runs over the positions of a sequence instead of the vocabulary, so
that no token distributions are compared, and they divide the sum by the number of examples only, so that the penalty
grows with vocabulary and length. Both are errors and are not reproduced: three of the four KL scripts run EWC, so no
published number is known to depend on them. The authors' ``lamb`` of 0.1 belongs to their scale.

Fidelity: hand-computed only. The numbers are computed by hand in the tests; no vectors of the authors' trainer were
available.
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
    weight_copies: ClassVar[int] = 1
    works_on_shards: ClassVar[bool] = True

    lamb: float = 0.1

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Only the stage's own examples."""
        return ()

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return not_negative(self, "lamb")

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> KLStep:  # noqa: ARG002
        """Start a run."""
        return KLStep(self, learner)


@final
class KLStep:
    """One run of KL; its state is the initial parameters."""

    def __init__(self, settings: KL, learner: Learner) -> None:
        """Copy the initial parameters."""
        self._settings = settings
        self._learner = learner
        self._start = ReferenceWeights(learner)

    def backward(self, batch: Batch) -> Metrics:
        """Write the gradient of the penalized loss; report the user's ``loss`` and the divergence."""
        from torch.nn.functional import kl_div, log_softmax

        from harness.training.learner import mean_loss

        def shares(piece: Piece) -> tuple[Tensor, Tensor, Tensor]:
            with self._start.at_reference():
                aligned = log_softmax(self._learner.predict(piece).logits.float(), dim=-1)
            prediction = self._learner.predict(piece)
            current = log_softmax(prediction.logits.float(), dim=-1)
            divergence = kl_div(current, aligned, reduction="sum", log_target=True) / prediction.positions.clamp(min=1)
            loss = mean_loss(prediction)
            return loss + self._settings.lamb * divergence, loss, divergence

        (_, loss, divergence), gradient = self._learner.accumulate(self._learner.pieces(batch), shares)
        self._learner.set_gradient(gradient)
        return {"loss": loss, "divergence": divergence}

    def state_dict(self) -> dict[str, Any]:
        """Return the initial parameters."""
        return {"start": self._start.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._start.load_state_dict(state["start"])
