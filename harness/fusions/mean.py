"""Mean: the average of the experts' changes of the base, ``W + (1 / E) sum_e D_e``.

Averaged task vectors, as in Wortsman et al.: "Model soups" (ICML 2022, arXiv 2203.05482); the plainest baseline of a
fusion of experts (H3Fusion, EACL 2026, arXiv 2411.17792). Exact: the factors of the experts are stacked, so the adapter
has the sum of their ranks. Averaging the factors apart would give another matrix, the mean of all products ``B_i A_j``.

Fidelity: hand-computed only; the formula has no constants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from harness.protocols import Fused

if TYPE_CHECKING:
    from harness.protocols import Product


@final
@dataclass(frozen=True, kw_only=True)
class Mean:
    """The average of the experts."""

    name: ClassVar[str] = "mean"
    version: ClassVar[int] = 1

    def fuse(self, experts: Sequence[Mapping[str, Product]]) -> Fused:
        """Return the average; it has no facts."""
        from harness.mechanisms.stacking import stacked

        return Fused(stacked(experts, 1 / len(experts)), {})
