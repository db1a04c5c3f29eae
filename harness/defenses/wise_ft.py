"""WiSE-FT: after fine-tuning, the weights are a weighted mean of the aligned and the fine-tuned model's.

Mitchell Wortsman et al.: "Robust fine-tuning of zero-shot models", CVPR 2022 (arXiv 2109.01903), with the aligned model
in the place of the zero-shot one, as safety papers use it. It needs no data.

With ``W_al`` and ``W_ft`` the matrices of an adapted layer before and after fine-tuning, the result is
``alpha * W_al + (1 - alpha) * W_ft``. (The paper's ``alpha`` is the share of the fine-tuned model.)

With ``finetune.adapter: double`` the second factor of the adapter is multiplied by ``1 - alpha``. With ``single`` the
result is the sum of two products and gets an adapter of twice the rank, so it is exact; the baseline ``scaled_update``
with the factor ``1 - alpha`` stores the best approximation of the original rank instead, and equals WiSE-FT with
``double``. Where a model's own weights are trained, they are averaged themselves, as in the paper.

Fidelity: hand-computed only. The equation is the paper's and is computed by hand in the tests; ``alpha`` 0.5 is the
middle, not a value taken from a safety paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from harness.engine.checks import shares
from harness.errors import Problem
from harness.mechanisms.weight_change import adapted_layers, interpolate, put, scaled, total

if TYPE_CHECKING:
    from harness.protocols import BatchProvider, DataRequirement, Gradient, Learner


@final
@dataclass(frozen=True, kw_only=True)
class WiseFT:
    """Settings of WiSE-FT.

    Attributes:
        alpha: share of the aligned model; 0 is the fine-tuned one.
    """

    name: ClassVar[str] = "wise_ft"
    version: ClassVar[int] = 1
    needs_plain_lora: ClassVar[bool] = True
    weight_copies: ClassVar[int] = 0

    alpha: float = 0.5

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """No data."""
        return ()

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return shares(self, "alpha")

    def repair(
        self,
        learner: Learner,
        *,
        start: Gradient,
        method_outputs: Mapping[str, Gradient],  # noqa: ARG002
        batches: BatchProvider,  # noqa: ARG002
    ) -> dict[str, object]:
        """Average the weights.

        Raises:
            ModelError: the trained adapter is not plain LoRA.
        """
        from harness.models.adapter import has_adapter

        if not has_adapter(learner.module):
            interpolate(learner, start, 1 - self.alpha)
            return {"alpha": self.alpha}
        results = {}
        for layer in adapted_layers(learner, start):
            tuned = scaled(layer.product, 1 - self.alpha)
            results[layer.name] = total(tuned, scaled(layer.held, self.alpha)) if layer.held is not None else tuned
        put(learner, results)
        return {"alpha": self.alpha}
