"""Whether a model supports decoding in slots: what its configuration says, and a short trial."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from harness.errors import ModelError
from harness.generation.slot_cache import LAYER_TYPES, LayerShape
from harness.generation.slots import SlotDecoder, capacity_for, shapes_of
from harness.generation.token_choice import Rules

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = {torch.float32: 0.02}
"""Relative error of the logits up to which the cache counts as correct, by dtype; allows for TF32."""
ROUGHLY = 0.2
"""The same for 16-bit dtypes, whose rounding accumulates over the layers; a wrong position or mask exceeds it."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Whether a model supports decoding in slots.

    Attributes:
        why: the reason if not; otherwise empty.
        shapes: key-value shapes by layer if it does.
    """

    why: str = ""
    shapes: list[LayerShape] = field(default_factory=list)


def fit(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> Fit:
    """Determine from its configuration, and with a short trial, whether a model supports decoding in slots.

    A model family may use its cache in ways that its configuration does not reveal, so the trial compares logits
    computed from slots with those of a forward pass without a cache.

    Args:
        model: a causal language model in evaluation mode, not wrapped by PEFT.
        prompts: token ids for the trial.

    Raises:
        torch.OutOfMemoryError: the trial does not fit into memory.
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
        # A model may fail in any way on a cache class that is not the library's own.
        return Fit(why=f"{type(model).__name__} does not work with it ({type(error).__name__}: {error})")
    if not found <= TOLERANCE.get(model.dtype, ROUGHLY):
        return Fit(why=f"{type(model).__name__} computes other logits with it (by {found:.3g} of their norm)")
    return Fit(shapes=shapes)


def _obstacle(model: PreTrainedModel) -> str:
    """Return why a model's configuration rules out slots; empty if it does not."""
    config = model.config
    if config._attn_implementation not in ("eager", "sdpa"):
        return f"attention {config._attn_implementation} takes no mask per row"
    if unknown := sorted(set(getattr(config, "layer_types", None) or ()) - LAYER_TYPES):
        return f"layers of kind {', '.join(unknown)} do not keep a key and a value per token"
    if not {"position_ids", "logits_to_keep"} <= inspect.signature(model.forward).parameters.keys():
        return f"{type(model).__name__} does not take positions"
    return ""


def deviation(model: PreTrainedModel, shapes: list[LayerShape], prompts: Sequence[Sequence[int]]) -> float:
    """Return the error of logits computed from slots relative to a forward pass without a cache.

    Two sequences of different lengths are prefilled and continued with three known tokens.

    Args:
        model: as for ``SlotDecoder``.
        shapes: its key-value shapes by layer.
        prompts: token ids; the sequences repeat the first tokens of the first and the last prompt four times.

    Returns:
        The norm of the difference relative to the norm of the logits, the larger one of the two sequences.
    """
    steps = 3
    known = [list(prompt) * (steps + 1) for prompt in (prompts[0][:9], prompts[-1][:6])]
    longest = max(map(len, known))
    decoder = SlotDecoder(model, shapes, slots=2, longest=longest, rules=Rules(new_tokens=steps, ends=()))
    decoder.enter([0, 1], [row[:-steps] for row in known])
    for step in range(steps):
        decoder.logits(2, capacity_for(longest, steps))
        decoder.follow([row[step - steps] for row in known])
    found = decoder.logits(2, capacity_for(longest, steps)).float()
    ids = (torch.tensor([row], device=model.device) for row in known)
    expected = torch.cat([model(input_ids=row, use_cache=False, logits_to_keep=1).logits[:, -1] for row in ids]).float()
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())
