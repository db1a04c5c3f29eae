"""Decoding with continuous batching: finished sequences leave the batch and waiting prompts take their slots.

Every sequence has its own slot in a preallocated key-value cache and its own position (``slot_cache``), so nothing is
padded. The state of a decoding step lives on the device: a step can be captured as a CUDA graph (``recorded``), and
the host checks for finished sequences only every few steps. When no prompts are waiting, the remaining sequences are
compacted and the batch size halves.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.corpora.batches import by_tokens
from harness.engine import gpu
from harness.generation.recorded import Recorded
from harness.generation.slot_cache import LayerShape, Shapes, SlotCache, masks_of
from harness.generation.token_choice import Rules, TokenChoice

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.models.cuda_graphs import Record

STEPS_PER_CHECK = 8
"""Decoding steps between two checks for finished sequences; each check synchronizes with the device."""
LENGTH_STEP = 128
"""The context length of a step is rounded up to a multiple of this, so that one CUDA graph serves as many steps."""
PROMPT_TOKENS = 8192
"""Tokens per forward pass of the prefill, padding included."""
MOST_SLOTS = 1024
"""Upper limit of the batch size: beyond it, a step is no longer bound by reading the weights."""
SPARED = 0.1
"""Share of the free memory reserved for activations."""


@dataclass(kw_only=True)
class _Row:
    """The sequence in a slot: index and length (in tokens) of its prompt, and decoding steps since it entered."""

    index: int
    length: int
    steps: int = 0


class SlotDecoder:
    """Decodes prompts with a fixed number of slots.

    Attributes:
        recorded: runs the decoding steps.

    Args:
        model: a causal language model in evaluation mode, not wrapped by PEFT.
        shapes: its key-value shapes by layer, as returned by ``shapes_of``.
        slots: maximum batch size.
        longest: length of the longest prompt, in tokens.
        rules: how tokens are chosen.
        record: see ``Recorded``; None runs every step eagerly.

    Raises:
        torch.OutOfMemoryError: the cache does not fit.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        shapes: list[LayerShape],
        *,
        slots: int,
        longest: int,
        rules: Rules,
        record: Record | None = None,
    ) -> None:
        """Allocate the cache and the state of the slots."""
        device = model.device
        self.recorded = Recorded(self._step, record=record)
        self._model, self._slots, self._new_tokens = model, slots, rules.longest
        self._capacity = capacity_for(longest, rules.longest)
        self._cache = SlotCache(shapes, slots=slots, capacity=self._capacity, device=device)
        self._choice = TokenChoice(rules, rows=slots, device=device)
        # Per slot: last token, its position, number of new tokens, the new tokens, and whether the sequence has ended.
        # A finished sequence keeps running until the next check; the extra column takes what it writes until then.
        self._token = torch.zeros(slots, dtype=torch.int64, device=device)
        self._place = torch.zeros(slots, dtype=torch.int64, device=device)
        self._count = torch.zeros(slots, dtype=torch.int64, device=device)
        self._written = torch.zeros(slots, rules.longest + 1, dtype=torch.int64, device=device)
        self._ended = torch.ones(slots, dtype=torch.bool, device=device)

    def decode(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int] | None = None
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield (index of the prompt, new tokens) as sequences finish; an end token is the last.

        Args:
            prompts: token ids, at least one each; sorting them by length minimizes padding in the prefill.
            seeds: of the random numbers of each prompt; None if tokens are not sampled.
        """
        seeds = seeds or [0] * len(prompts)
        waiting = deque(range(len(prompts)))
        rows: dict[int, _Row] = {}
        size = self._slots
        while waiting or rows:
            entering = [(slot, waiting.popleft()) for slot in range(size) if waiting and slot not in rows]
            for part in by_tokens([len(prompts[index]) for _, index in entering], PROMPT_TOKENS):
                slots, entered = zip(*entering[part], strict=True)
                self.enter(slots, [prompts[index] for index in entered], [seeds[index] for index in entered])
            rows |= {slot: _Row(index=index, length=len(prompts[index])) for slot, index in entering}
            while not waiting and len(rows) <= size // 2:
                size //= 2
                rows = self._gathered(rows, size)
            steps = min(STEPS_PER_CHECK, self._new_tokens - min(row.steps for row in rows.values()))
            furthest = max(row.length + row.steps for row in rows.values()) + steps
            length = min(ceil(furthest / LENGTH_STEP) * LENGTH_STEP, self._capacity)
            for _ in range(steps):
                self.recorded(size, length)
            for row in rows.values():
                row.steps += steps
            ended = self._ended[:size].tolist()
            yield from self._leaving(rows, [slot for slot in rows if ended[slot]])

    def logits(self, rows: int, length: int) -> Tensor:
        """Run the model on the last token of the first slots; return the logits, ``[rows, vocabulary]``.

        Args:
            rows: batch size.
            length: context length: number of cache positions read per slot.
        """
        place = self._place[:rows]
        mask = masks_of(self._model.config, place, length, self._model.dtype)
        with self._cache.adding(place, length):
            given = {"input_ids": self._token[:rows, None], "position_ids": place[:, None], "attention_mask": mask}
            return forward(self._model, self._cache, **given)[:, -1]

    def enter(self, slots: Sequence[int], prompts: Sequence[Sequence[int]], seeds: Sequence[int] | None = None) -> None:
        """Prefill slots with prompts, all tokens but the last, which is the input of the next decoding step."""
        device = self._token.device
        at = torch.tensor(slots, device=device)
        width = max(map(len, prompts)) - 1
        if width:
            ids = torch.zeros(len(prompts), width, dtype=torch.int64)
            for row, prompt in enumerate(prompts):
                ids[row, : len(prompt) - 1] = torch.tensor(prompt[:-1])
            places = torch.arange(width, device=device)[None].expand(len(prompts), -1)
            with self._cache.filling(at):
                forward(self._model, self._cache, input_ids=ids.to(device), position_ids=places)
        self._token[at] = torch.tensor([prompt[-1] for prompt in prompts], device=device)
        self._place[at] = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
        self._count[at] = 0
        self._ended[at] = False
        self._choice.enter(at, seeds or [0] * len(slots))

    def follow(self, tokens: Sequence[int]) -> None:
        """Append given tokens to the first slots (teacher forcing)."""
        self._token[: len(tokens)] = torch.tensor(tokens, device=self._token.device)
        self._place[: len(tokens)] += 1

    def _step(self, rows: int, length: int) -> None:
        token, place, count, ended = (state[:rows] for state in (self._token, self._place, self._count, self._ended))
        new, last = self._choice(self.logits(rows, length), count)
        token.copy_(new)
        self._written[:rows].scatter_(1, count[:, None], new[:, None])
        place.add_(1).clamp_(max=self._capacity - 1)
        # What a finished sequence goes on to write is not counted.
        count.add_(~ended)
        ended.logical_or_(last)

    def _gathered(self, rows: dict[int, _Row], size: int) -> dict[int, _Row]:
        """Compact the sequences into the first ``size`` slots; return them by slot."""
        free = (slot for slot in range(size) if slot not in rows)
        moved = {slot: next(free) for slot in rows if slot >= size}
        if moved:
            source, target = (torch.tensor(list(slots), device=self._token.device) for slots in (moved, moved.values()))
            self._cache.move(source, target)
            for state in (self._token, self._place, self._count, self._written, self._ended):
                state[target] = state[source]
            self._choice.move(source, target)
        return {moved.get(slot, slot): row for slot, row in rows.items()}

    def _leaving(self, rows: dict[int, _Row], slots: list[int]) -> Iterator[tuple[int, list[int]]]:
        at = torch.tensor(slots, dtype=torch.int64, device=self._token.device)
        for slot, count, written in zip(slots, self._count[at].tolist(), self._written[at].tolist(), strict=True):
            yield rows.pop(slot).index, written[:count]


def capacity_for(longest: int, new_tokens: int) -> int:
    """Return the number of positions per slot, a multiple of eight as attention kernels require."""
    return ceil((longest + new_tokens) / 8) * 8


def shapes_of(model: PreTrainedModel) -> list[LayerShape]:
    """Return the key-value shapes of a model by layer, found with a forward pass of one token."""
    shapes = Shapes()
    zero = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    forward(model, shapes, input_ids=zero, position_ids=zero)
    return shapes.layer_shapes


def room(device: torch.device) -> int | None:
    """Return the memory of a GPU that this process may still allocate, in bytes; None for other devices."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    held, used = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
    return fair_room(free, total, held=held, used=used, workers=gpu.workers())


def fair_room(free: int, total: int, *, held: int, used: int, workers: int) -> int:
    """Return what is left of a process's equal share of a GPU's memory; all sizes in bytes.

    Args:
        free: free memory of the GPU.
        total: total memory of the GPU.
        held: memory reserved by this process's allocator.
        used: the part of it that is allocated.
        workers: processes sharing the GPU.
    """
    return max(0, min(free + held, total // workers) - used)


def count_for(shapes: list[LayerShape], room: int, prompts: Sequence[Sequence[int]], new_tokens: int) -> int:
    """Return the number of slots: as many as fit into memory, at least one and at most one per prompt.

    Args:
        shapes: key-value shapes by layer.
        room: available memory, in bytes.
        prompts: token ids.
        new_tokens: maximum number of new tokens.
    """
    row = capacity_for(max(map(len, prompts)), new_tokens) * sum(shape.bytes for shape in shapes)
    return max(1, min(int(room * (1 - SPARED)) // row, len(prompts), MOST_SLOTS))


def forward(model: PreTrainedModel, cache: Any, **given: Any) -> Tensor:
    """Run the model with a cache; return the logits of the last position, ``[rows, 1, vocabulary]``."""
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    logits: Tensor = model(**given, **{name: cache}, use_cache=True, logits_to_keep=1).logits
    return logits
