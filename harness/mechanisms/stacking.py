"""Weighted sums of low-rank changes of a model, exact: the factors are stacked, so that no matrix is approximated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.mechanisms.weight_change import scaled, total
from harness.protocols import Product


def stacked(experts: Sequence[Mapping[str, Product]], weight: float) -> dict[str, Product]:
    """Return the sum of several changes times a weight, by layer, of the sum of their ranks.

    Args:
        experts: changes of the same layers.
        weight: factor of each of them.
    """
    return {layer: total(*(scaled(expert[layer], weight) for expert in experts)) for layer in experts[0]}
