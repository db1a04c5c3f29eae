"""Safe LoRA: after fine-tuning, the user's change of a layer is projected onto the alignment's, if it points elsewhere.

Chia-Yi Hsu, Yu-Lin Tsai, Chih-Hsun Lin, Pin-Yu Chen, Chia-Mu Yu, Chun-Ying Huang: "Safe LoRA: the Silver Lining of
Reducing Safety Risks when Fine-tuning Large Language Models", NeurIPS 2024 (arXiv 2405.16833).

For each adapted layer, with ``V`` the change of its matrix by alignment (aligned minus unaligned), ``U`` that by the
user's fine-tuning, and ``C = V V^T / ||V||_F``:

1. ``cos = <C U, U> / (||C U|| ||U||)``, rounded to five digits as the authors do;
2. if ``cos <= threshold``, ``U`` is replaced by ``C U``; otherwise it is kept. With ``mode: threshold`` this is the
   setting ``threshold``, with ``mode: number`` the ``number``-th smallest cosine, so ties project more layers.

``C`` is symmetric but not idempotent, and ``C U`` may be longer than ``U``; ``projector: orthogonal`` is the orthogonal
projector onto the column space of ``V``, which the idea describes and the authors do not use. No data is needed.

The paper's ``V`` is the difference of a chat model and its base, of full rank. Here it is the aligned adapter's
product, so the columns of ``C U`` lie in at most ``rank`` directions: with the orthogonal projector, the cosine of a
random ``U`` is about the square root of ``rank / out``. The authors' threshold of 0.5 does not carry over. The cosines
are facts of the manifest, from which one can be chosen.

With ``finetune.adapter: double``, ``U`` is the adapter's product, as in the paper. With ``single`` it is the adapter's
product minus the aligned one; ``V + C U`` then has the columns of ``V``, so it fits the adapter exactly. A layer that
alignment did not change has no ``C`` and is kept (the authors divide by zero).

Deviations from the authors' code (commit d81fda1): layers are paired by their names instead of by order; which factor
is projected does not depend on its shape; the scale ``alpha / rank`` is part of ``V`` (it cancels in the cosine, and
scales ``C``).

Fidelity: hand-computed only. Equations and defaults are those of the authors' code; cosines and projections are
computed by hand in the tests; no vectors of their implementation were available.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, final

from harness.engine.checks import counts
from harness.errors import Problem
from harness.mechanisms.weight_change import (
    PROJECTORS,
    AdaptedLayer,
    Projector,
    aligned_layers,
    cosine,
    put,
)
from harness.protocols import Product

if TYPE_CHECKING:
    from harness.protocols import BatchProvider, DataRequirement, Gradient, Learner


@final
@dataclass(frozen=True, kw_only=True)
class SafeLora:
    """Settings of Safe LoRA.

    Attributes:
        mode: which layers are projected: those whose cosine is at most ``threshold``, or the ``number`` of lowest.
        threshold: the largest cosine that is projected, with ``mode: threshold``.
        number: number of layers that are projected, with ``mode: number``; all, if there are fewer.
        projector: ``published`` is ``V V^T / ||V||_F``, ``orthogonal`` the projector onto the columns of ``V``.
    """

    name: ClassVar[str] = "safe_lora"
    version: ClassVar[int] = 1
    needs_plain_lora: ClassVar[bool] = True
    uses_alignment: ClassVar[bool] = True

    mode: Literal["threshold", "number"] = "threshold"
    threshold: float = 0.5
    number: int = 10
    projector: Literal["published", "orthogonal"] = "published"

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """No data."""
        return ()

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = counts(self, "number")
        if not -1 <= self.threshold <= 1:
            found.append(Problem("threshold", f"{self.threshold} is no cosine; expected a number from -1 to 1"))
        return found

    def repair(
        self,
        learner: Learner,
        *,
        start: Gradient,
        method_outputs: Mapping[str, Gradient],  # noqa: ARG002
        batches: BatchProvider,  # noqa: ARG002
    ) -> dict[str, object]:
        """Project the user's change of the layers whose cosine is low; report the cosines and the threshold.

        Raises:
            ModelError: what is trained is not plain LoRA, or alignment changed no layer.
        """
        layers = aligned_layers(learner, start)
        projectors = {
            layer.name: PROJECTORS[self.projector](layer.alignment) for layer in layers if layer.alignment is not None
        }
        cosines = {
            layer.name: cosine(projectors[layer.name], layer.user_change)
            for layer in layers
            if layer.name in projectors
        }
        threshold = self.threshold
        if self.mode == "number":
            threshold = sorted(cosines.values())[: self.number][-1]
        projected = {layer.name: cosines.get(layer.name, math.inf) <= threshold for layer in layers}
        put(
            learner,
            {layer.name: projection(projectors[layer.name], layer) for layer in layers if projected[layer.name]},
        )
        return {
            "threshold": threshold,
            "cosines": cosines,
            "projected": projected,
            "projected_share": sum(projected.values()) / len(layers),
            "without_alignment": len(layers) - len(cosines),
        }


def projection(projector: Projector, layer: AdaptedLayer) -> Product:
    """Return what the adapter holds once the user's change is projected; its rank is at most the adapter's."""
    if layer.held is None:
        return projector.of(layer.product)
    change = layer.user_change
    return Product(projector.columns, projector.rows + projector.mapping @ change.b @ change.a)
