"""The dtype of the adapter during generation, which is that of training."""

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
    """Run a float32 adapter on a bfloat16 base in bfloat16, as autocast does in training.

    The factors are cast once instead of in every forward pass; the results equal those of autocast bit for bit. On
    exit, the float32 factors are restored. Bases of other dtypes are left unchanged.
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
    """Return the dtypes that a model computes in, for the manifest."""
    base = str(model.dtype).removeprefix("torch.")
    wider = {str(factor.dtype).removeprefix("torch.") for factor in _wider_factors(model)}
    return f"{base}, adapter {wider.pop()}" if wider else base


def _wider_factors(model: PreTrainedModel) -> list[Parameter]:
    return [
        parameter
        for name, parameter in model.named_parameters()
        if ".lora_" in name and parameter.dtype == torch.float32 != model.dtype
    ]
