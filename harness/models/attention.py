"""Causal attention without masks, for batches that are padded on the right.

In a causal model no real token attends to what follows it, so padding on the right needs no mask. Before every pass,
transformers looks at values on the device to find out whether a mask is needed; where it knows no way of making a mask
for an implementation of attention, it does not look. Attention then takes its causal kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(_NAME, sdpa_attention_forward)
    whole: Any = model
    base = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
    base.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        base.set_attn_implementation(_PLAIN)
