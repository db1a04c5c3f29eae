"""SafeMERGE: after fine-tuning, layers whose change points away from the alignment's are merged with a safe adapter.

Aladin Djuhera et al.: "SafeMERGE: Preserving Safety Alignment in Fine-Tuned Large Language Models via Selective
Layer-Wise Model Merging" (arXiv 2503.17239).

For each adapted layer the cosine is that of Safe LoRA: with ``V`` the change of its matrix by alignment, ``U`` that by
the user's fine-tuning and ``C = V V^T / ||V||_F``, ``cos = <C U, U> / (||C U|| ||U||)``, rounded to five digits. Where
``cos < threshold``, the fine-tuned adapter is merged with a safe one, with the weights ``1 - safe_weight`` and
``safe_weight``; the other layers are kept.

The safe adapter is trained on refusals from the aligned model, as the user's was and with the same budget and protocol
(stage ``safe`` of the cell; cells with one alignment share it). Its first factors are drawn from a seed of its own.

``merge: factors`` is what the authors do, peft's "linear" combination: ``A = sum of sqrt(w_i) A_i`` and
``B = sum of sqrt(w_i) B_i``, whose product has the cross terms ``sqrt(w_1 w_2) (B_1 A_2 + B_2 A_1)``. With
``merge: products`` the products are averaged, exactly, by an adapter of twice the rank. With
``finetune.adapter: single`` both adapters contain the alignment, and the cross terms of ``factors`` multiply it by up
to ``(sqrt(w_1) + sqrt(w_2))^2``, which is 1.8 at 0.8 and 0.2; the authors' adapters are of the kind ``double``.

Fidelity: hand-computed only. Cosine, threshold, weights and the combination are those of the authors' code (commit
2af08c1), with peft's definition of "linear"; cosines and merges are computed by hand in the tests. The rows and the
budget of the safe adapter are ours, and ``V`` is the aligned adapter's product instead of a chat model's difference to
its base, so the threshold does not carry over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, final

from harness.engine.checks import counts, shares
from harness.errors import ModelError, Problem
from harness.mechanisms.weight_change import (
    AdaptedLayer,
    aligned_layers,
    cosine,
    published_projector,
    put,
    scaled,
    total,
)
from harness.protocols import Product

if TYPE_CHECKING:
    from harness.protocols import BatchProvider, DataRequirement, Gradient, Learner


@final
@dataclass(frozen=True, kw_only=True)
class SafeMerge:
    """Settings of SafeMERGE.

    Attributes:
        threshold: layers with a cosine below it are merged.
        safe_weight: weight of the safe adapter.
        merge: ``factors`` combines the factors, as the authors do; ``products`` the products.
        safe_rows: number of refusals that the safe adapter is trained on; None uses all of the corpus.
    """

    name: ClassVar[str] = "safemerge"
    version: ClassVar[int] = 1
    needs_plain_lora: ClassVar[bool] = True
    uses_alignment: ClassVar[bool] = True

    threshold: float = 0.35
    safe_weight: float = 0.2
    merge: Literal["factors", "products"] = "factors"
    safe_rows: int | None = None

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """No data of its own: the safe adapter's is that of its stage."""
        return ()

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = [*shares(self, "safe_weight"), *counts(self, "safe_rows")]
        if not -1 <= self.threshold <= 1:
            found.append(Problem("threshold", f"{self.threshold} is no cosine; expected a number from -1 to 1"))
        return found

    def repair(
        self,
        learner: Learner,
        *,
        start: Gradient,
        method_outputs: Mapping[str, Gradient],
        batches: BatchProvider,  # noqa: ARG002
    ) -> dict[str, object]:
        """Merge the layers whose cosine is low; report the cosines.

        Raises:
            ModelError: what is trained is not plain LoRA, alignment changed no layer, or there is no safe adapter.
        """
        if "safe" not in method_outputs:
            raise ModelError("`safemerge` has no safe adapter; expected the stage `safe` as a parent of the repair")
        layers = aligned_layers(learner, start)
        safe = {id(weight): value for weight, value in zip(learner.trainables, method_outputs["safe"], strict=True)}
        cosines = {
            layer.name: cosine(published_projector(layer.alignment), layer.user_change)
            for layer in layers
            if layer.alignment is not None
        }
        merged = {layer.name: cosines.get(layer.name, math.inf) < self.threshold for layer in layers}
        combined = {"factors": self._factors, "products": self._products}[self.merge]
        results = {
            layer.name: combined(layer, Product(safe[id(layer.b)], safe[id(layer.a)]))
            for layer in layers
            if merged[layer.name]
        }
        put(learner, results)
        return {"cosines": cosines, "merged": merged, "merged_share": len(results) / len(layers)}

    def _factors(self, layer: AdaptedLayer, safe: Product) -> Product:
        first, second = math.sqrt(1 - self.safe_weight), math.sqrt(self.safe_weight)
        b, a = layer.b.detach(), layer.a.detach()
        return Product(layer.scale * (first * b + second * safe.b), first * a + second * safe.a)

    def _products(self, layer: AdaptedLayer, safe: Product) -> Product:
        return total(scaled(layer.product, 1 - self.safe_weight), scaled(safe, layer.scale * self.safe_weight))
