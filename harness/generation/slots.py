"""Greedy decoding in slots: rows end and others take their place, without padding and with few calls from Python.

Each prompt has a slot of the cache and a position of its own (``slot_cache``). What a step needs and what it yields
are tensors on the device, so that a step can be recorded as a CUDA graph (``cuda_graphs``) and the host asks only
every few steps which rows have ended. Their slots go to waiting prompts; when none wait, the rows that are left move
together and the batch halves.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.corpora.batches import by_tokens
from harness.engine import gpu
from harness.errors import ModelError
from harness.generation.cuda_graphs import Recorded, Run
from harness.generation.slot_cache import LAYER_TYPES, LayerShape, Shapes, SlotCache, masks_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STEPS_PER_CHECK = 8
"""Steps between two looks at which rows have ended: each look waits for the device."""
LENGTH_STEP = 128
"""The positions that a step reads are rounded up to a multiple of this: one graph serves as many steps."""
PROMPT_TOKENS = 8192
"""Tokens of the prompts that are read in one forward pass, padding included."""
MOST_SLOTS = 1024
"""More rows at once gain nothing: a step of so many is no longer bound by reading the weights."""
SPARED = 0.1
"""Share of the free memory that is left for activations."""
TOLERANCE = {torch.float32: 0.02}
"""Relative error of the logits up to which the cache counts as correct, by number format; it leaves room for TF32."""
ROUGHLY = 0.2
"""The same for shorter formats, whose rounding adds up over the layers; a wrong position or mask gives more."""


@dataclass(kw_only=True)
class _Row:
    """A prompt in a slot: its index, its length in tokens, and the steps that were taken since it entered."""

    index: int
    length: int
    steps: int = 0


class SlotDecoder:
    """Decodes prompts in a fixed number of slots.

    Attributes:
        recorded: takes the steps.

    Args:
        model: a causal language model in evaluation mode, without a wrapper.
        shapes: what its layers store, as ``shapes_of`` found them.
        slots: rows at once.
        longest: tokens of the longest prompt.
        new_tokens: longest answer, in tokens.
        ends: tokens that end an answer.
        record: see ``Recorded``; None launches every kernel of every step.

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
        new_tokens: int,
        ends: Sequence[int],
        record: Callable[[Run], Run] | None = None,
    ) -> None:
        """Allocate the cache and the state of the rows."""
        device = model.device
        self.recorded = Recorded(self._step, record=record)
        self._model, self._slots, self._new_tokens = model, slots, new_tokens
        self._capacity = capacity_for(longest, new_tokens)
        self._cache = SlotCache(shapes, slots=slots, capacity=self._capacity, device=device)
        self._ends = torch.tensor(list(ends), dtype=torch.int64, device=device)
        # Of each slot: the last token, its position, how many tokens were written and which, and whether the row has
        # ended. A row takes part until its end is noticed; the last column holds what it writes until then.
        self._token = torch.zeros(slots, dtype=torch.int64, device=device)
        self._place = torch.zeros(slots, dtype=torch.int64, device=device)
        self._count = torch.zeros(slots, dtype=torch.int64, device=device)
        self._written = torch.zeros(slots, new_tokens + 1, dtype=torch.int64, device=device)
        self._ended = torch.ones(slots, dtype=torch.bool, device=device)

    def decode(self, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[int, list[int]]]:
        """Yield the index of each prompt and its new tokens, as they end; after an end token, anything may follow.

        Args:
            prompts: tokens, at least one each; sorted by length, those that enter together are padded least.
        """
        waiting = deque(range(len(prompts)))
        rows: dict[int, _Row] = {}
        size = self._slots
        while waiting or rows:
            entering = [(slot, waiting.popleft()) for slot in range(size) if waiting and slot not in rows]
            for part in by_tokens([len(prompts[index]) for _, index in entering], PROMPT_TOKENS):
                self.enter([slot for slot, _ in entering[part]], [prompts[index] for _, index in entering[part]])
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
        """Read the last token of the first rows, ``[rows, vocabulary]`` of what may follow it.

        Args:
            rows: how many slots take part.
            length: how many positions of each are read.
        """
        place = self._place[:rows]
        mask = masks_of(self._model.config, place, length, self._model.dtype)
        with self._cache.adding(place, length):
            given = {"input_ids": self._token[:rows, None], "position_ids": place[:, None], "attention_mask": mask}
            return forward(self._model, self._cache, **given)[:, -1]

    def enter(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        """Put prompts into slots: all tokens but the last go through the model, which the next step takes."""
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

    def follow(self, tokens: Sequence[int]) -> None:
        """Continue the first rows with given tokens, whatever the model would write."""
        self._token[: len(tokens)] = torch.tensor(tokens, device=self._token.device)
        self._place[: len(tokens)] += 1

    def _step(self, rows: int, length: int) -> None:
        new = self.logits(rows, length).argmax(dim=-1)
        token, place, count = self._token[:rows], self._place[:rows], self._count[:rows]
        token.copy_(new)
        self._written[:rows].scatter_(1, count[:, None], new[:, None])
        place.add_(1).clamp_(max=self._capacity - 1)
        count.add_(1).clamp_(max=self._new_tokens)
        self._ended[:rows].logical_or_((new[:, None] == self._ends).any(dim=1) | (count == self._new_tokens))

    def _gathered(self, rows: dict[int, _Row], size: int) -> dict[int, _Row]:
        """Move rows into the first slots, as many as there shall be; return who is where."""
        free = (slot for slot in range(size) if slot not in rows)
        moved = {slot: next(free) for slot in rows if slot >= size}
        if moved:
            source, target = (torch.tensor(list(slots), device=self._token.device) for slots in (moved, moved.values()))
            self._cache.move(source, target)
            for state in (self._token, self._place, self._count, self._written, self._ended):
                state[target] = state[source]
        return {moved.get(slot, slot): row for slot, row in rows.items()}

    def _leaving(self, rows: dict[int, _Row], slots: list[int]) -> Iterator[tuple[int, list[int]]]:
        at = torch.tensor(slots, dtype=torch.int64, device=self._token.device)
        for slot, count, written in zip(slots, self._count[at].tolist(), self._written[at].tolist(), strict=True):
            yield rows.pop(slot).index, written[:count]


def capacity_for(longest: int, new_tokens: int) -> int:
    """Return how many positions a slot has; kernels of attention want a multiple of eight."""
    return ceil((longest + new_tokens) / 8) * 8


def shapes_of(model: PreTrainedModel) -> list[LayerShape]:
    """Return what each layer of a model stores, found by reading one token."""
    shapes = Shapes()
    zero = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    forward(model, shapes, input_ids=zero, position_ids=zero)
    return shapes.layer_shapes


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Whether the answers of a model can be decoded in slots.

    Attributes:
        why: why not; empty if they can.
        shapes: what the layers of the model store, if they can.
    """

    why: str = ""
    shapes: list[LayerShape] = field(default_factory=list)


def fit(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> Fit:
    """Find out whether a model's answers can be decoded in slots, by its settings and by trying.

    A family of models may use its cache in ways that nothing announces. So a few tokens are read from slots, and the
    logits compared with those of a pass without a cache.

    Args:
        model: a causal language model in evaluation mode, without a wrapper.
        prompts: tokens to try it with.

    Raises:
        torch.OutOfMemoryError: a few tokens do not fit into memory.
    """
    if not all(prompts):
        return Fit(why="a prompt has no token to start from")
    if why := _obstacle(model):
        return Fit(why=why)
    try:
        shapes = shapes_of(model)
        found = deviation(model, shapes, prompts)
    except torch.OutOfMemoryError:
        raise
    except (ArithmeticError, AttributeError, LookupError, ModelError, RuntimeError, TypeError, ValueError) as error:
        # What a model does with a cache that is not one of the library's is not ours to foresee.
        return Fit(why=f"{type(model).__name__} does not work with it ({type(error).__name__}: {error})")
    if not found <= TOLERANCE.get(model.dtype, ROUGHLY):
        return Fit(why=f"{type(model).__name__} computes other logits with it (by {found:.3g} of their norm)")
    return Fit(shapes=shapes)


def room(device: torch.device) -> int | None:
    """Return the bytes that this process may still take on a GPU; None elsewhere."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    held, used = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
    return fair_room(free, total, held=held, used=used, workers=gpu.workers())


def fair_room(free: int, total: int, *, held: int, used: int, workers: int) -> int:
    """Return how much of a GPU's memory is left for a process, of which several share it equally; all in bytes.

    Args:
        free: what nobody has taken.
        total: what there is.
        held: what this process has taken.
        used: what of that is in use.
        workers: processes that share the GPU.
    """
    return max(0, min(free + held, total // workers) - used)


def count_for(shapes: list[LayerShape], room: int, prompts: Sequence[Sequence[int]], new_tokens: int) -> int:
    """Return how many slots to use: as many as memory holds, at least one, and none without a prompt.

    Args:
        shapes: of the layers.
        room: free memory, in bytes.
        prompts: tokens.
        new_tokens: longest answer, in tokens.
    """
    row = capacity_for(max(map(len, prompts)), new_tokens) * sum(shape.bytes for shape in shapes)
    return max(1, min(int(room * (1 - SPARED)) // row, len(prompts), MOST_SLOTS))


def _obstacle(model: PreTrainedModel) -> str:
    """Return which setting of a model stands against slots; empty if none does."""
    config = model.config
    if config._attn_implementation not in ("eager", "sdpa"):
        return f"attention {config._attn_implementation} takes no mask per row"
    if unknown := sorted(set(getattr(config, "layer_types", None) or ()) - LAYER_TYPES):
        return f"layers of kind {', '.join(unknown)} do not keep a key and a value per token"
    if not {"position_ids", "logits_to_keep"} <= inspect.signature(model.forward).parameters.keys():
        return f"{type(model).__name__} does not take positions"
    return ""


def deviation(model: PreTrainedModel, shapes: list[LayerShape], prompts: Sequence[Sequence[int]]) -> float:
    """Return how far logits read from slots are from those of a pass without a cache.

    Two rows of different lengths enter and are continued with three known tokens.

    Args:
        model: as for ``SlotDecoder``.
        shapes: of its layers.
        prompts: the first tokens of the first and the last are read, four times over.

    Returns:
        The norm of the largest difference of a row, relative to the norm of its logits.
    """
    steps = 3
    known = [list(prompt) * (steps + 1) for prompt in (prompts[0][:9], prompts[-1][:6])]
    longest = max(map(len, known))
    decoder = SlotDecoder(model, shapes, slots=2, longest=longest, new_tokens=steps, ends=())
    decoder.enter([0, 1], [row[:-steps] for row in known])
    for step in range(steps):
        decoder.logits(2, capacity_for(longest, steps))
        decoder.follow([row[step - steps] for row in known])
    found = decoder.logits(2, capacity_for(longest, steps)).float()
    ids = (torch.tensor([row], device=model.device) for row in known)
    expected = torch.cat([model(input_ids=row, use_cache=False, logits_to_keep=1).logits[:, -1] for row in ids]).float()
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


def forward(model: PreTrainedModel, cache: Any, **given: Any) -> Tensor:
    """Return the logits of the last position, ``[rows, 1, vocabulary]``, of a pass that fills a cache."""
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    logits: Tensor = model(**given, **{name: cache}, use_cache=True, logits_to_keep=1).logits
    return logits
