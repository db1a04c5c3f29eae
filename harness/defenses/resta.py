"""RESTA: after fine-tuning, a safety vector is added: a multiple of the weights' change by alignment.

Rishabh Bhardwaj, Do Duc Anh, Soujanya Poria: "Language Models are Homer Simpson! Safety Re-Alignment of Fine-tuned
Language Models through Task Arithmetic", ACL 2024 (arXiv 2402.11746), with DARE (Le Yu et al., arXiv 2311.03099).

With ``V`` the change of an adapted layer's matrix by alignment (aligned minus unaligned) and ``U`` that by fine-tuning,
the result is ``W_al + DARE(U) + gamma * V``: the fine-tuned model with the alignment applied ``1 + gamma`` times. DARE
sets each entry of ``U`` to zero with the probability ``drop_rate`` and divides the others by ``1 - drop_rate``; at 0 it
does nothing. It needs no data.

The result is a sum of products, of the sum of their ranks, so the adapter's rank grows: exact, without a rounding to
the base's dtype. A matrix with entries dropped is no longer of low rank: with DARE the adapter gets the rank of the
largest matrix, and every layer the size of two factors of that rank; vLLM generates with it merged. The mask is drawn
on the CPU, for each layer from a seed of its own.

What ``V`` is differs between papers: here it is what the alignment stage did to the base model. Ports also use the
difference to a model that was tuned to be harmful, which is longer, so a ``gamma`` does not carry over.

Fidelity: equations second-hand. They are those of public ports, which differ in ``gamma``: 0.5 in the port of SOMF
(safety_realignment, commit 5a80593), the default here; 1.0 and 0.3 in others. The paper's own values of ``gamma`` and
``drop_rate`` were not available (0.9 in the ports). The sum and the mask's arithmetic are computed by hand in the
tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from harness.engine.checks import below_one, not_negative
from harness.errors import Problem
from harness.mechanisms.weight_change import aligned_layers, norm, put, scaled, total, whole
from harness.protocols import Product

if TYPE_CHECKING:
    from torch import Generator

    from harness.protocols import BatchProvider, DataRequirement, Gradient, Learner


@final
@dataclass(frozen=True, kw_only=True)
class Resta:
    """Settings of RESTA.

    Attributes:
        gamma: factor of the change by alignment that is added.
        drop_rate: probability with which DARE drops an entry of the user's change; 0 is without DARE.
    """

    name: ClassVar[str] = "resta"
    version: ClassVar[int] = 1
    needs_plain_lora: ClassVar[bool] = True
    uses_alignment: ClassVar[bool] = True

    gamma: float = 0.5
    drop_rate: float = 0.0

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """No data."""
        return ()

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return [*not_negative(self, "gamma"), *below_one(self, "drop_rate")]

    def repair(
        self,
        learner: Learner,
        *,
        start: Gradient,
        method_outputs: Mapping[str, Gradient],  # noqa: ARG002
        batches: BatchProvider,
    ) -> dict[str, object]:
        """Drop entries of the user's change, and add the safety vector; report both norms.

        Raises:
            ModelError: what is trained is not plain LoRA, or alignment changed no layer.
        """
        import torch

        layers = aligned_layers(learner, start)
        results, vector, change = {}, 0.0, 0.0
        for layer in layers:
            result = layer.product
            if self.drop_rate:
                rng = torch.Generator().manual_seed(batches.derive(self.name, layer.name))
                dropped = dare(layer.user_change, self.drop_rate, rng)
                result = dropped if layer.held is None else total(dropped, layer.held)
            if layer.alignment is not None:
                result = total(result, scaled(layer.alignment, self.gamma))
                vector += norm(layer.alignment) ** 2
            change += norm(layer.user_change) ** 2
            results[layer.name] = result
        put(learner, results)
        return {"alignment_norm": vector**0.5, "user_norm": change**0.5, "gamma": self.gamma}


def dare(change: Product, rate: float, rng: Generator) -> Product:
    """Return a change with entries dropped at random and the others rescaled, as a product of full rank."""
    import torch

    matrix = change.b @ change.a
    kept = torch.rand(matrix.shape, generator=rng).to(matrix.device) >= rate
    return whole(matrix * kept / (1 - rate))
