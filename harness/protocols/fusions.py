"""Interface of fusions: several alignments of one base become one adapter, without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from harness.protocols.learner import Named

if TYPE_CHECKING:
    from harness.protocols.learner import Product


class Fused(NamedTuple):
    """What a fusion makes of several alignments.

    Attributes:
        products: the change of the base, by layer; all of one rank.
        facts: for the manifest, as JSON.
    """

    products: Mapping[str, Product]
    facts: Mapping[str, object]


class Fusion(Named, Protocol):
    """Frozen settings of a way to fuse alignments."""

    def fuse(self, experts: Sequence[Mapping[str, Product]]) -> Fused:
        """Return one change of the base.

        Args:
            experts: the change of the base by each alignment, scale included, by layer: the same layers in all. Their
                order must not matter, beyond the rounding of a sum.
        """
        ...
