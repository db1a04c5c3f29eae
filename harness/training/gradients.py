"""Gradient arithmetic shared by several methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from harness.protocols import Gradient


EPSILON = 1e-7
"""Added to a norm before dividing by it, as in the authors' code."""


def add_scaled(gradient: Gradient, other: Gradient, scale: float) -> None:
    """Add ``scale * other`` to a gradient, in place."""
    for part, addend in zip(gradient, other, strict=True):
        part.add_(addend, alpha=scale)


def inner_product(gradient: Gradient, other: Gradient) -> Tensor:
    """Return the inner product of two gradients over all trainable parameters, a scalar on their device."""
    import torch

    from harness.training.distributed import whole

    return whole(torch.stack([(part * factor).sum() for part, factor in zip(gradient, other, strict=True)]).sum())


def refuse_dropout(module: Module, method: str) -> None:
    """Check that dropout is off, so that two passes on one batch differ by the weights alone.

    Raises:
        ModelError: the model applies dropout.
    """
    found = dropout_in(module)
    if found:
        raise ModelError(
            f"dropout is active in {found}; {method} compares two gradients on one batch, which requires dropout 0 in "
            "the adapter and in the model's configuration"
        )


def dropout_in(module: Module) -> str:
    """Return the first module with a positive dropout rate (a dropout layer or an attention), or an empty string."""
    for name, part in module.named_modules():
        is_layer = type(part).__name__.startswith(("Dropout", "AlphaDropout", "FeatureAlphaDropout"))
        rate = getattr(part, "p" if is_layer else "attention_dropout", 0.0)
        if isinstance(rate, int | float) and rate > 0:
            return f"`{name}` (rate {rate})"
    return ""
