"""LoX: plain alignment, after which the weights' change by alignment is extrapolated along its main directions.

Gabriel J. Perin et al.: "LoX: Low-Rank Extrapolation Robustifies LLM Safety Against Fine-tuning", COLM 2025 (arXiv
2506.15606).

With ``V`` the change of an adapted layer's matrix by alignment and ``V_k`` its best approximation of rank k (singular
value decomposition), the aligned matrix becomes ``W_al + coefficient * V_k``. It is an edit after the last step of the
alignment: the training before it is plain, and no data is needed.

``V`` is the product of the adapter's factors, so ``V + coefficient * V_k = (I + coefficient * U_k U_k^T) B A`` with the
first k left singular vectors as the columns of ``U_k``: ``B`` alone changes, and the rank stays. With ``rank: null``
(all) it is ``B`` times ``1 + coefficient``. The authors edit all matrices of a fully tuned model.

A larger ``B`` makes the steps of a user who continues the adapter (``finetune.adapter: single``) smaller in
proportion, because AdamW's steps do not depend on the size of the weights. Part of the effect may be that; ``double``
is free of it.

Fidelity: hand-computed only. The equation and the default coefficient are those of the authors' code (commit 9213ce6),
whose default rank means all; the paper's own values were not available. The extrapolation is computed by hand in the
tests. It cannot be combined with another method of the alignment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.engine.checks import counts, not_negative
from harness.errors import Problem
from harness.mechanisms.weight_change import main_directions
from harness.protocols import Product

if TYPE_CHECKING:
    from harness.protocols import Batch, BatchProvider, DataRequirement, Learner, Metrics


@final
@dataclass(frozen=True, kw_only=True)
class LoX:
    """Settings of LoX.

    Attributes:
        coefficient: how far the change by alignment is extrapolated; 0 is plain alignment.
        rank: number of directions, by singular value; null is all.
    """

    name: ClassVar[str] = "lox"
    version: ClassVar[int] = 1
    needs_plain_lora: ClassVar[bool] = True

    coefficient: float = 1.0
    rank: int | None = None

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Only the stage's own examples."""
        return ()

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return [*not_negative(self, "coefficient"), *counts(self, "rank")]

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> LoXStep:  # noqa: ARG002
        """Start a run.

        Raises:
            ModelError: what is trained is not plain LoRA.
        """
        return LoXStep(self, learner)


@final
class LoXStep:
    """One run of LoX: plain training, and the edit at its end. It has no state between steps."""

    def __init__(self, settings: LoX, learner: Learner) -> None:
        """Find the factors.

        Raises:
            ModelError: what is trained is not plain LoRA.
        """
        from harness.models.adapter import trained_pairs

        self._settings = settings
        self._learner = learner
        self._pairs = trained_pairs(learner.module)

    def backward(self, batch: Batch) -> Metrics:
        """Write the gradient of the loss."""
        loss, gradient = self._learner.gradient(batch)
        self._learner.set_gradient(gradient)
        return {"loss": loss}

    def finish(self) -> dict[str, object]:
        """Extrapolate the weights; report the share of the change's squared norm that was extrapolated."""
        import torch

        extrapolated = squares = 0.0
        with torch.no_grad():
            for name_a, name_b in self._pairs:
                a, b = (self._learner.module.get_parameter(name) for name in (name_a, name_b))
                directions, singular = main_directions(Product(b, a))
                chosen = directions[:, : self._settings.rank]
                extrapolated += float(singular[: self._settings.rank].square().sum())
                squares += float(singular.square().sum())
                b.add_(chosen @ (chosen.T @ b), alpha=self._settings.coefficient)
        return {"extrapolated_share": extrapolated / squares if squares else 0.0}

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict: a step has no state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing: a step has no state."""
