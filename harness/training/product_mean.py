"""The mean of products of factors, as a product of factors of a given rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from harness.protocols import Product


class Approximation(NamedTuple):
    """The nearest product of a rank.

    Attributes:
        product: with factors of equal singular values: ``U S^{1/2}`` and ``S^{1/2} V^T``.
        lost: the square of the norm of what is missing.
        whole: the square of the norm of the exact mean.
    """

    product: Product
    lost: float
    whole: float


def mean_product(products: Sequence[Product], weights: Tensor, rank: int) -> Approximation:
    """Return the product of a rank that is nearest to ``sum_k w_k B_k A_k`` in the Frobenius norm.

    Computed in float64 from the factors, without a matrix of the layer's size. If the mean has a lower rank, the rest
    of the factors is zero.

    Args:
        products: of equal shapes.
        weights: one each.
        rank: of the result.
    """
    left = torch.cat([weight * each.b.double() for weight, each in zip(weights, products, strict=True)], dim=1)
    right = torch.cat([each.a.double() for each in products])
    outer, core_b = torch.linalg.qr(left)
    inner, core_a = torch.linalg.qr(right.T)
    first, singular, second = torch.linalg.svd(core_b @ core_a.T, full_matrices=False)
    kept = min(rank, len(singular))
    roots = singular[:kept].sqrt()
    b = left.new_zeros(len(left), rank)
    a = right.new_zeros(rank, right.shape[1])
    b[:, :kept] = outer @ first[:, :kept] * roots
    a[:kept] = roots[:, None] * (second[:kept] @ inner.T)
    dtype = products[0].b.dtype
    powers = singular.square()
    return Approximation(Product(b.to(dtype), a.to(dtype)), float(powers[kept:].sum()), float(powers.sum()))
