"""Sum: task arithmetic, ``W + scale * sum_e D_e`` with ``D_e`` the change of the base by expert ``e``.

Ilharco et al.: "Editing Models with Task Arithmetic" (ICLR 2023, arXiv 2212.04089), their addition of task vectors.
Exact: the factors of the experts are stacked, so the adapter has the sum of their ranks.

Fidelity: hand-computed only. The scale is tuned on held-out data in the paper; here it is a setting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from harness.engine.checks import positive
from harness.errors import Problem
from harness.protocols import Fused

if TYPE_CHECKING:
    from harness.protocols import Product


@final
@dataclass(frozen=True, kw_only=True)
class Sum:
    """The sum of the experts.

    Attributes:
        scale: factor of the sum; 1 adds whole changes, ``1 / E`` is the mean.
    """

    name: ClassVar[str] = "sum"
    version: ClassVar[int] = 1

    scale: float = 1.0

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return positive(self, "scale")

    def fuse(self, experts: Sequence[Mapping[str, Product]]) -> Fused:
        """Return the sum; it has no facts."""
        from harness.mechanisms.stacking import stacked

        return Fused(stacked(experts, self.scale), {})
