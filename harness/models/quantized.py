"""4-bit bases: NF4 with double quantization, as QLoRA trains adapters on (an optional extra, bitsandbytes).

QLoRA (Dettmers et al., 2023, arXiv:2305.14314, section 3): the entries of a linear layer in blocks of 64 are divided
by the largest magnitude of their block and rounded to one of 16 values, the quantiles of a normal distribution; these
magnitudes are quantized to 8 bits themselves, in blocks of 256. A forward pass dequantizes a matrix to the number
format of the base (``dtype``) and multiplies in it. Embeddings, norms and the output head keep that number format.

Quantizing is deterministic on a device, so the quantized weights are not stored: they are computed from the model's
files whenever a process loads it.
"""

from __future__ import annotations

import importlib.util
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from harness.errors import ModelError, Problem

if TYPE_CHECKING:
    import torch
    from torch.nn import Module

EXTRA = "quantized"
BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Bits of an entry, with its share of the magnitudes of its block and of those of the block's block."""


class Quantization(StrEnum):
    """How the matrices of linear layers are kept in memory."""

    NF4 = "nf4"


@runtime_checkable
class MayBeQuantized(Protocol):
    """Optional: a model source that can quantize the base to 4 bits."""

    @property
    def quantized(self) -> Quantization | None:
        """The form of the matrices; None keeps them in the number format of the base."""
        ...

    def loaded_bytes(self) -> int | None:
        """Return the bytes of the weights in memory; None if the files are not on this machine."""
        ...


def form_of(source: object) -> Quantization | None:
    """Return how a model source quantizes matrices; None if it does not."""
    return source.quantized if isinstance(source, MayBeQuantized) else None


def missing_package(quantized: Quantization | None) -> list[Problem]:
    """Return a problem if the package of quantized layers is needed and missing."""
    if quantized is None or importlib.util.find_spec("bitsandbytes") is not None:
        return []
    text = (
        f"`{quantized}` needs the package bitsandbytes, which is not installed; expected null, or: "
        f"pip install 'harness[{EXTRA}]'"
    )
    return [Problem("model.source.quantized", text)]


def loading_options(quantized: Quantization | None, dtype: torch.dtype) -> dict[str, Any]:
    """Return the options of ``from_pretrained`` that quantize a model while it is loaded; none if it stays as it is.

    Args:
        quantized: the form of the matrices.
        dtype: the number format in which matrices are dequantized and multiplied.
    """
    if quantized is None:
        return {}
    from transformers import BitsAndBytesConfig

    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantized.value,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    }


def keep_layout(model: Module, label: str) -> None:
    """Keep the layers of a quantized model from changing the layout of their weights.

    On a CPU with AVX512-BF16 a layer would rearrange its weights in its first pass without gradients, and multiply in
    bfloat16 from then on: results would depend on what a process had done before.

    Args:
        model: the model.
        label: its name in messages.

    Raises:
        ModelError: no layer is quantized.
    """
    from bitsandbytes.nn import Linear4bit

    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    if not layers:
        raise ModelError(
            f"`{label}` has no linear layers that can be quantized; expected some. Set `model.source.quantized=null`"
        )
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False


def is_quantized(model: Module) -> bool:
    """Return whether the matrices of a model are quantized to 4 bits."""
    return bool(getattr(model, "is_loaded_in_4bit", False))
