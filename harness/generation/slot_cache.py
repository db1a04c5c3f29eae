"""A preallocated key-value cache with one slot per sequence, each at its own position.

The static cache of transformers has one length for the whole batch: sequences must be left padded and end together.
Here the position of each sequence is a tensor on the device. A new sequence can therefore take over a slot, prompts
need no left padding, and the shapes of a decoding step depend only on batch size and context length, as CUDA graphs
require.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import Cache

from harness.errors import ModelError

LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
"""Layer types whose keys and values can be stored in a slot."""


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """What one layer stores per position.

    Attributes:
        heads: key-value heads.
        key: size of a key.
        value: size of a value.
        dtype: number format.
    """

    heads: int
    key: int
    value: int
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Bytes per position."""
        return self.heads * (self.key + self.value) * self.dtype.itemsize


class Shapes(Cache):  # type: ignore[misc]
    """Records the shapes of each layer's keys and values during one forward pass, without storing them.

    Attributes:
        layer_shapes: by layer.
    """

    def __init__(self) -> None:
        """Start empty."""
        super().__init__(layers=[])
        self.layer_shapes: list[LayerShape] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args: Any, **_more: Any
    ) -> tuple[Tensor, Tensor]:
        """Record the shapes; called by each attention layer."""
        if layer_idx != len(self.layer_shapes):
            raise ModelError(f"layer {layer_idx} was cached after {len(self.layer_shapes)} layers; expected each once")
        self.layer_shapes.append(
            LayerShape(
                heads=key_states.shape[1], key=key_states.shape[3], value=value_states.shape[3], dtype=key_states.dtype
            )
        )
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        """Return 0: nothing is cached."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:  # noqa: ARG002
        """Return length and offset of the keys: those of the queries."""
        return query_length, 0


class SlotCache(Cache):  # type: ignore[misc]
    """Keys and values of a fixed number of sequences, ``[slots, heads, capacity, size]`` per layer.

    Within ``filling`` a forward pass prefills slots, within ``adding`` it decodes one token per slot. The cache cannot
    be passed to a model otherwise.
    """

    def __init__(self, shapes: list[LayerShape], *, slots: int, capacity: int, device: torch.device) -> None:
        """Allocate the cache.

        Args:
            shapes: key-value shapes by layer.
            slots: number of sequences.
            capacity: positions per sequence.
            device: device of the cache.

        Raises:
            torch.OutOfMemoryError: the cache does not fit into memory.
        """
        super().__init__(layers=[])
        self._keys = [
            torch.zeros(slots, shape.heads, capacity, shape.key, dtype=shape.dtype, device=device) for shape in shapes
        ]
        self._values = [
            torch.zeros(slots, shape.heads, capacity, shape.value, dtype=shape.dtype, device=device) for shape in shapes
        ]
        self._rows = torch.arange(slots, device=device)
        self._filled: Tensor | None = None
        self._place: Tensor | None = None
        self._length = 0

    @contextmanager
    def filling(self, slots: Tensor) -> Iterator[None]:
        """Prefill: the forward pass writes right-padded prompts from position 0 on.

        Padding needs no mask: causal attention hides it from the prompt, and later tokens overwrite it.

        Args:
            slots: the slot of each row of the pass, ``[rows]``.
        """
        self._filled = slots
        try:
            yield
        finally:
            self._filled = None

    @contextmanager
    def adding(self, place: Tensor, length: int) -> Iterator[None]:
        """Decode: the forward pass appends one token to each of the first slots and attends to their first positions.

        Args:
            place: position of each token, ``[rows]``.
            length: number of positions read; greater than the place of every sequence in use.
        """
        self._place, self._length = place, length
        try:
            yield
        finally:
            self._place = None

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy sequences to other slots, ``[rows]`` each; source and target are disjoint."""
        for store in (*self._keys, *self._values):
            store.index_copy_(0, target, store.index_select(0, source))

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args: Any, **_more: Any
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values and return those to attend to; called by each attention layer."""
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        if self._filled is not None:
            width = key_states.shape[2]
            keys[:, :, :width].index_copy_(0, self._filled, key_states)
            values[:, :, :width].index_copy_(0, self._filled, value_states)
            return key_states, value_states
        assert self._place is not None, "the cache was used outside of `filling` and `adding`"
        rows = self._rows[: len(self._place)]
        keys[rows, :, self._place] = key_states[:, :, 0]
        values[rows, :, self._place] = value_states[:, :, 0]
        return keys[: len(rows), :, : self._length], values[: len(rows), :, : self._length]

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        """Return 0: the library asks this for the prefill only, which starts at position 0."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:  # noqa: ARG002
        """Return length and offset of the keys in the prefill: those of the queries."""
        return query_length, 0


def masks_of(config: PretrainedConfig, place: Tensor, length: int, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """Return the attention mask of a decoding step in the form that the model expects.

    Args:
        config: the model's configuration.
        place: position of each token, ``[rows]``.
        length: number of positions read.
        dtype: dtype of the attention scores, to which eager attention adds the mask.

    Returns:
        ``[rows, 1, 1, length]``, or one such mask per layer type: boolean for sdpa; additive (0 or the dtype's minimum)
        for eager attention.
    """
    positions = torch.arange(length, device=place.device)
    seen = positions <= place[:, None]
    window = getattr(config, "sliding_window", None)
    near = seen if window is None else seen & (positions > place[:, None] - window)

    def shaped(mask: Tensor) -> Tensor:
        mask = mask[:, None, None, :]
        if config._attn_implementation != "eager":
            return mask
        # masked_fill takes the value as a kernel argument; torch.where would copy it to the device during a capture.
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)

    if kinds := getattr(config, "layer_types", None):
        return {kind: shaped(near if kind == "sliding_attention" else seen) for kind in sorted(set(kinds))}
    return shaped(near)
