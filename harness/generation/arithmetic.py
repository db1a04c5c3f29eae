"""The number format in which an adapter answers: that of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch.nn import Parameter
    from transformers import PreTrainedModel


@contextmanager
def trained_arithmetic(model: PreTrainedModel) -> Iterator[None]:
    """Have a float32 adapter on a bfloat16 base compute in bfloat16, as under the autocast of training.

    Autocast would round the factors in every step; here they are rounded once, and the products are the same bit for
    bit. On leaving, the factors are the float32 tensors that they were. Nothing changes for a base of another format.
    """
    kept = [(factor, factor.data) for factor in _wider_factors(model)] if model.dtype == torch.bfloat16 else []
    try:
        for factor, value in kept:
            factor.data = value.to(torch.bfloat16)
        yield
    finally:
        for factor, value in kept:
            factor.data = value


def arithmetic_of(model: PreTrainedModel) -> str:
    """Return the number formats that a model computes in, for a manifest."""
    base = str(model.dtype).removeprefix("torch.")
    wider = {str(factor.dtype).removeprefix("torch.") for factor in _wider_factors(model)}
    return f"{base}, adapter {wider.pop()}" if wider else base


def _wider_factors(model: PreTrainedModel) -> list[Parameter]:
    return [
        parameter
        for name, parameter in model.named_parameters()
        if ".lora_" in name and parameter.dtype == torch.float32 != model.dtype
    ]
