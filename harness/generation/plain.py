"""Greedy decoding with the ``generate`` of transformers: left-padded batches that end with their last row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int,
    new_tokens: int,
    ends: Sequence[int],
    pad: int,
) -> Iterator[tuple[int, list[int]]]:
    """Yield the index of each prompt and its new tokens, batch by batch; after an end token, padding may follow.

    Args:
        model: a causal language model in evaluation mode, without a wrapper.
        prompts: tokens; sorted by length, they are padded least.
        batch_size: rows at once.
        new_tokens: longest answer, in tokens.
        ends: tokens that end an answer.
        pad: the token that pads.
    """
    settings = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=list(ends) or None,
        pad_token_id=pad,
    )
    for start in range(0, len(prompts), batch_size):
        with _configured(model, settings):
            written = _continue(model, prompts[start : start + batch_size], pad)
        yield from enumerate(written, start)


def _continue(model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int) -> list[list[int]]:
    """Return the new tokens of each prompt, padded on the right where a row ended before the longest."""
    width = max(map(len, prompts))
    ids = [[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    written = model.generate(
        input_ids=torch.tensor(ids, device=model.device), attention_mask=torch.tensor(mask, device=model.device)
    )
    tokens: list[list[int]] = written[:, width:].tolist()
    return tokens


@contextmanager
def _configured(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """Replace the model's own generation settings, from which the library fills what passed ones leave open."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own
