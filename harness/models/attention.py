"""Causal attention without masks, for batches that are padded on the right.

In a causal model no real token attends to what follows it, so padding on the right needs no mask. Before every pass,
transformers looks at values on the device to find out whether a mask is needed; where it knows no way of making a mask
for an implementation of attention, it does not look. Attention then takes its causal kernel.

In float32, PyTorch has that kernel for equally many heads of queries and keys only: grouped ones would be computed by a
dozen kernels (of ``sdp_utils.cpp``, the flash kernel takes 16 bits, and the memory-efficient one no groups). Their keys
and values are therefore repeated first, as transformers itself does where there is a mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

_NAME = "harness_causal"
_PLAIN = "sdpa"


def needs_no_mask(model: Module, longest: int) -> bool:
    """Return whether a causal kernel is all that the attention of a model does for examples up to a length.

    Implementations other than PyTorch's are left as they are (some cap the scores), and so are sliding windows that
    are shorter than the examples.
    """
    config: Any = model.config
    window = getattr(config, "sliding_window", None)
    return getattr(config, "_attn_implementation", None) == _PLAIN and (window is None or longest <= window)


@contextmanager
def causal_attention(model: Module) -> Iterator[None]:
    """Let a model for which ``needs_no_mask`` holds attend without masks while the context lasts."""
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, _attention)
    whole: Any = model
    base = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
    base.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        base.set_attn_implementation(_PLAIN)


class _Ungrouped:
    """What transformers asks about an attention whose keys and values are repeated already."""

    is_causal = True


_UNGROUPED = _Ungrouped()


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **named: Any
) -> tuple[Tensor, Tensor | None]:
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    # Under autocast, queries and keys may be float32 here, from their rotation; values come from a product. Torch 2.11
    # would break a compiled graph where the state of autocast is asked for.
    if value.dtype == torch.float32:
        groups = query.shape[1] // key.shape[1]
        key, value, owner = repeat_kv(key, groups), repeat_kv(value, groups), _UNGROUPED
    else:
        owner = module
    found: tuple[Tensor, Tensor | None] = sdpa_attention_forward(owner, query, key, value, *args, **named)
    return found
