"""A key-value cache with one slot per row: allocated once, each row at a position of its own.

The static cache of transformers has one length for the whole batch, so rows that start together must be padded and end
together. Here the position of every row is data on the device. A row can therefore enter a slot that another has left,
prompts need no padding on the left, and the shapes of a decoding step depend only on how many slots and positions it
reads, which is what a CUDA graph requires.
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
"""Kinds of layers whose keys and values can lie in a slot."""


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """What one layer stores per position of a row.

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
        """Bytes per position of a row."""
        return self.heads * (self.key + self.value) * self.dtype.itemsize


class Shapes(Cache):  # type: ignore[misc]
    """Stores nothing; records the shape of each layer's keys and values in one forward pass.

    Attributes:
        layer_shapes: in the order of the layers.
    """

    def __init__(self) -> None:
        """Start without any."""
        super().__init__(layers=[])
        self.layer_shapes: list[LayerShape] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args: Any, **_more: Any
    ) -> tuple[Tensor, Tensor]:
        """Record the shapes; called by the attention of each layer."""
        if layer_idx != len(self.layer_shapes):
            raise ModelError(f"layer {layer_idx} was cached after {len(self.layer_shapes)} layers; expected each once")
        self.layer_shapes.append(
            LayerShape(
                heads=key_states.shape[1], key=key_states.shape[3], value=value_states.shape[3], dtype=key_states.dtype
            )
        )
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        """Return that nothing was cached before."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:  # noqa: ARG002
        """Return the length and the offset of what the queries see: themselves."""
        return query_length, 0


class SlotCache(Cache):  # type: ignore[misc]
    """Keys and values of a fixed number of rows, ``[slots, heads, capacity, size]`` in each layer.

    Prompts are written with ``filling``; one token of each row is added with ``adding``. Outside of both, the cache
    must not be given to a model.
    """

    def __init__(self, shapes: list[LayerShape], *, slots: int, capacity: int, device: torch.device) -> None:
        """Allocate.

        Args:
            shapes: of the layers.
            slots: rows.
            capacity: positions of each row.
            device: where.

        Raises:
            torch.OutOfMemoryError: there is no room.
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
        """Have the next forward pass write whole prompts, right padded, from position 0 on.

        Padding needs no mask: it follows the prompt, so causal attention hides it, and later tokens overwrite it.

        Args:
            slots: where each row of the pass goes, ``[rows]``.
        """
        self._filled = slots
        try:
            yield
        finally:
            self._filled = None

    @contextmanager
    def adding(self, place: Tensor, length: int) -> Iterator[None]:
        """Have the next forward pass add one token to each of the first slots, and read the first positions of them.

        Args:
            place: position of the token in its row, ``[rows]``.
            length: how many positions are read; more than any place of a row that is in use.
        """
        self._place, self._length = place, length
        try:
            yield
        finally:
            self._place = None

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy rows into other slots, ``[rows]`` each; the two have no slot in common."""
        for store in (*self._keys, *self._values):
            store.index_copy_(0, target, store.index_select(0, source))

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args: Any, **_more: Any
    ) -> tuple[Tensor, Tensor]:
        """Store what a layer computed and return what its queries see; called by the attention of each layer."""
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        if self._filled is not None:
            width = key_states.shape[2]
            keys[:, :, :width].index_copy_(0, self._filled, key_states)
            values[:, :, :width].index_copy_(0, self._filled, value_states)
            return key_states, value_states
        assert self._place is not None, "the cache was given to a model outside of `filling` and `adding`"
        rows = self._rows[: len(self._place)]
        keys[rows, :, self._place] = key_states[:, :, 0]
        values[rows, :, self._place] = value_states[:, :, 0]
        return keys[: len(rows), :, : self._length], values[: len(rows), :, : self._length]

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        """Return that nothing precedes: the library asks this only for prompts, which start a row."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:  # noqa: ARG002
        """Return the length and the offset of what a prompt sees: itself."""
        return query_length, 0


def masks_of(config: PretrainedConfig, place: Tensor, length: int, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """Return which of the first positions of its slot each row's token sees, in the form that the model expects.

    Args:
        config: of the model.
        place: position of the token in its row, ``[rows]``.
        length: how many positions are read.
        dtype: number format of the scores that eager attention adds the mask to.

    Returns:
        ``[rows, 1, 1, length]``, or one such mask for each kind of layer: true where a position is seen, or 0 where it
        is seen and the lowest number elsewhere for eager attention.
    """
    positions = torch.arange(length, device=place.device)
    seen = positions <= place[:, None]
    window = getattr(config, "sliding_window", None)
    near = seen if window is None else seen & (positions > place[:, None] - window)

    def shaped(mask: Tensor) -> Tensor:
        mask = mask[:, None, None, :]
        if config._attn_implementation != "eager":
            return mask
        # A number to fill in is an argument of the kernel; one to choose from would be copied to the device.
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)

    if kinds := getattr(config, "layer_types", None):
        return {kind: shaped(near if kind == "sliding_attention" else seen) for kind in sorted(set(kinds))}
    return shaped(near)
