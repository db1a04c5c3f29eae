"""Greedy decoding with ``generate`` of transformers: left-padded batches that run until their last sequence ends."""

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
    """Yield (index of the prompt, new tokens) batch by batch; padding may follow an end token.

    Args:
        model: a causal language model in evaluation mode, not wrapped by PEFT.
        prompts: token ids; sorting them by length minimizes padding.
        batch_size: sequences per batch.
        new_tokens: maximum number of new tokens.
        ends: end-of-sequence token ids.
        pad: padding token id.
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
    """Return the new tokens of each prompt, right padded to the longest."""
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
    """Replace the model's generation config: the library takes values missing in a passed config from it."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own
