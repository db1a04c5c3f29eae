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

    The factors of LoRA are cast once instead of in every forward pass; the results equal those of autocast bit for bit.
    On exit, the float32 factors are restored. DoRA runs under autocast itself: it computes the norms of the rows in the
    dtype of the factors, so that casting them would change the norms. Bases of other dtypes are left unchanged.
    """
    if model.dtype != torch.bfloat16:
        yield
        return
    if any(".lora_magnitude_vector." in name for name, _ in model.named_parameters()):
        # Without the cache of casts, which must not be filled while a CUDA graph is captured.
        with torch.autocast(model.device.type, dtype=torch.bfloat16, cache_enabled=False):
            yield
        return
    kept = [(factor, factor.data) for factor in _wider_factors(model)]
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
    if torch.is_autocast_enabled(model.device.type):
        return f"{base}, adapter under autocast"
    wider = {str(factor.dtype).removeprefix("torch.") for factor in _wider_factors(model)}
    return f"{base}, adapter {wider.pop()}" if wider else base


def _wider_factors(model: PreTrainedModel) -> list[Parameter]:
    return [
        parameter
        for name, parameter in model.named_parameters()
        if ".lora_" in name and parameter.dtype == torch.float32 != model.dtype
    ]
