"""The attention weights of a forward pass, where the implementation gives them.

Fast implementations never have the weights of a head as a matrix. Within the context, attention runs in transformers'
plain one, whose blocks return them next to their output.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import Module

from harness.errors import ModelError
from harness.models.decoder import attention_blocks

_PLAIN = "eager"


@contextmanager
def kept_attention(model: Module) -> Iterator[dict[int, Tensor]]:
    """Yield a dict that a forward pass fills with the weights of each layer, ``[batch, heads, time, time]``, by index.

    Weight ``[b, h, i, j]`` is that of position j for position i; over j they sum to 1.

    Raises:
        ModelError: the attention blocks cannot be found, or one returns no weights.
    """
    kept: dict[int, Tensor] = {}

    def keep(module: Module, _inputs: Any, output: Any, *, index: int) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if not isinstance(weights, Tensor) or weights.dim() != 4:
            raise ModelError(
                f"{type(module).__name__} returned no attention weights; expected a model of transformers whose "
                f"attention has the implementation `{_PLAIN}`"
            )
        kept[index] = weights

    with _plain_attention(model), ExitStack() as stack:
        for index, block in enumerate(attention_blocks(model)):
            stack.callback(block.register_forward_hook(partial(keep, index=index)).remove)
        yield kept


@contextmanager
def _plain_attention(model: Any) -> Iterator[None]:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = getattr(base, "config", None)
    before = getattr(config, "_attn_implementation", None)
    if before in (None, _PLAIN):
        yield
        return
    base.set_attn_implementation(_PLAIN)
    try:
        yield
    finally:
        base.set_attn_implementation(before)
