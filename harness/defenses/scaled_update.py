"""Scaled update: after fine-tuning, the user's change of the weights is multiplied by a factor below 1.

A trivial baseline for repairs, which shows what is won by moving back towards the aligned model alone: linear
interpolation between the two, as in Mitchell Wortsman et al.: "Robust fine-tuning of zero-shot models" (WiSE-FT), CVPR
2022 (arXiv 2109.01903). It needs no data.

With ``W_0`` the product of the adapter's factors before fine-tuning and ``W`` that after it, each adapted layer gets
``W_0 + factor * (W - W_0)``. It is the products that are interpolated: interpolated factors would have a product with
cross terms, which is neither model's.

With ``finetune.adapter: double``, ``W_0`` is zero and the second factor is multiplied: exact. With ``single`` the
result has up to twice the adapter's rank, of which the best approximation of that rank is stored (singular value
decomposition); the fact ``lost`` is the norm of what is lost by it, over all layers, divided by that of
``factor * (W - W_0)``, and 0 with ``double``. DoRA is refused: its weights are not the base's plus a product.
Where a model's own weights are trained, they are interpolated themselves, and nothing is lost.

Fidelity: a baseline of the harness; the interpolation and what is lost are computed by hand in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, final

from harness.engine.checks import shares
from harness.errors import Problem

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols import BatchProvider, DataRequirement, Gradient, Learner


@final
@dataclass(frozen=True, kw_only=True)
class ScaledUpdate:
    """Settings of the baseline.

    Attributes:
        factor: what is left of the user's change; 0 is the aligned model, 1 the fine-tuned one.
    """

    name: ClassVar[str] = "scaled_update"
    version: ClassVar[int] = 1
    needs_plain_lora: ClassVar[bool] = True
    weight_copies: ClassVar[int] = 0

    factor: float = 0.5

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """No data."""
        return ()

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return shares(self, "factor")

    def repair(
        self,
        learner: Learner,
        *,
        start: Gradient,
        method_outputs: Mapping[str, Gradient],  # noqa: ARG002
        batches: BatchProvider,  # noqa: ARG002
    ) -> dict[str, object]:
        """Scale the user's change of every adapted layer, or of every trained weight.

        Raises:
            ModelError: the trained adapter is not plain LoRA.
        """
        import torch

        from harness.mechanisms.weight_change import interpolate
        from harness.models.adapter import has_adapter, trained_pairs

        if not has_adapter(learner.module):
            interpolate(learner, start, self.factor)
            return {"factor": self.factor, "lost": 0.0}

        initial = {id(weight): value for weight, value in zip(learner.trainables, start, strict=True)}
        lost = scale = 0.0
        with torch.no_grad():
            for name_a, name_b in trained_pairs(learner.module):
                a, b = learner.module.get_parameter(name_a), learner.module.get_parameter(name_b)
                a0, b0 = initial[id(a)], initial[id(b)]
                if not b0.any():
                    b.mul_(self.factor)
                    continue
                parts = interpolated(Factors(a0, b0), Factors(a, b), self.factor)
                a.copy_(parts.factors.a)
                b.copy_(parts.factors.b)
                lost, scale = lost + parts.lost**2, scale + parts.change**2
        return {"factor": self.factor, "lost": (lost / scale) ** 0.5 if scale else 0.0}


class Factors(NamedTuple):
    """The factors of an adapted layer, ``[rank, in]`` and ``[out, rank]``."""

    a: Tensor
    b: Tensor


class Interpolated(NamedTuple):
    """An interpolation of two products, the norm of what its rank loses, and that of the change that was scaled."""

    factors: Factors
    lost: float
    change: float


def interpolated(before: Factors, after: Factors, factor: float) -> Interpolated:
    """Return the best approximation, of the factors' rank, of the interpolation between two products."""
    import torch

    rank = len(after.a)
    columns, rows = torch.cat([before.b, after.b], dim=1).double(), torch.cat([before.a, after.a]).double()
    left, left_core = torch.linalg.qr(columns)
    right, right_core = torch.linalg.qr(rows.T)
    weights = torch.full((2 * rank,), factor, dtype=columns.dtype, device=columns.device)
    change = left_core * torch.cat([-weights[:rank], weights[rank:]]) @ right_core.T
    weights[:rank] = 1 - factor
    u, singular, v = torch.linalg.svd(left_core * weights @ right_core.T)
    root = singular[:rank].sqrt()
    kept = len(root)
    factors = Factors(a=torch.zeros_like(after.a), b=torch.zeros_like(after.b))
    factors.a[:kept] = (root[:, None] * (v[:kept] @ right.T)).float()
    factors.b[:, :kept] = ((left @ u[:, :kept]) * root).float()
    return Interpolated(factors, float(singular[rank:].norm()), float(change.norm()))
