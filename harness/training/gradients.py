"""Arithmetic on gradients that several methods share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import ModelError

if TYPE_CHECKING:
    from torch.nn import Module

    from harness.protocols import Gradient


EPSILON = 1e-7
"""Added to a norm before dividing by it, as in the authors' code."""


def add_scaled(gradient: Gradient, other: Gradient, scale: float) -> None:
    """Add ``scale * other`` to a gradient, in place."""
    for part, addend in zip(gradient, other, strict=True):
        part.add_(addend, alpha=scale)


def refuse_dropout(module: Module, method: str) -> None:
    """Check that two passes on one batch differ by nothing but the weights.

    Raises:
        ModelError: the model drops out activations.
    """
    found = _dropout(module)
    if found:
        raise ModelError(
            f"dropout is active in {found}; {method} compares two gradients on one batch, which needs dropout 0 in "
            "the adapter and in the model's configuration"
        )


def _dropout(module: Module) -> str:
    """Name the first place where activations are dropped: a dropout layer, or an attention with a dropout rate."""
    for name, part in module.named_modules():
        is_layer = type(part).__name__.startswith(("Dropout", "AlphaDropout", "FeatureAlphaDropout"))
        rate = getattr(part, "p" if is_layer else "attention_dropout", 0.0)
        if isinstance(rate, int | float) and rate > 0:
            return f"`{name}` (rate {rate})"
    return ""
