"""Batched greedy decoding with transformers.

Prompts are sorted by length, left-padded and decoded in batches; generations are returned in the order of the prompts.
Padding is masked and positions count from the first real token, so the batch size changes results only through
rounding. ``agreement`` measures how often rounding changes a generation.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig

from harness.corpora.encode import prompts_of
from harness.errors import ModelError
from harness.generation.decoding import Decoding

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


log = logging.getLogger(__name__)


def generate(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    new_tokens: int,
    decoding: Decoding,
    batch_size: int = 64,
) -> list[str]:
    """Return the greedy continuation of every prompt, at most ``new_tokens`` tokens, in the order of the prompts.

    Special tokens are stripped, whitespace is not. Prompts are encoded as in training; duplicates are decoded once.
    Truncation is described at ``Decoding.max_prompt``. The longest prompts are decoded first; a batch that does not fit
    into memory is halved. The model's train/eval mode is restored on return.

    Raises:
        ModelError: a single prompt does not fit into memory.
    """
    if not prompts:
        return []
    distinct = list(dict.fromkeys(prompts))
    encoded = prompts_of(tokenizer, distinct)
    lengths = [len(prompt.ids) for prompt in encoded]
    if cut := sum(length > decoding.max_prompt for length in lengths):
        log.warning(
            "%d of %d prompts are longer than %d tokens and were truncated at the beginning",
            cut,
            len(encoded),
            decoding.max_prompt,
        )
    ends = _end_tokens(model, tokenizer)
    settings = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=ends or None,
        pad_token_id=tokenizer.pad_token_id,
    )
    generations: dict[str, str] = {}
    pending = sorted(range(len(encoded)), key=lambda i: (-lengths[i], i))
    with _generation_mode(model, settings) as base, torch.inference_mode():
        while pending:
            rows = pending[:batch_size]
            try:
                generated = _decode_batch(
                    base, [encoded[i].ending(decoding.max_prompt) for i in rows], tokenizer.pad_token_id
                )
            except torch.OutOfMemoryError as error:
                batch_size = len(rows) // 2
                if batch_size == 0:
                    raise ModelError(
                        f"`{base.device}` has too little memory for one prompt and {new_tokens} new tokens; expected "
                        "enough for the model and its KV cache. Choose a smaller `model` or `evaluation.new_tokens`."
                    ) from error
                log.warning("out of memory: continuing with a batch size of %d", batch_size)
                continue
            generations |= {distinct[i]: _text(tokenizer, row, ends) for i, row in zip(rows, generated, strict=True)}
            pending = pending[len(rows) :]
    return [generations[prompt] for prompt in prompts]


def too_long(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], decoding: Decoding) -> int:
    """Return how many prompts exceed ``max_prompt`` and are therefore truncated."""
    return sum(len(prompt.ids) > decoding.max_prompt for prompt in prompts_of(tokenizer, prompts))


def agreement(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    new_tokens: int,
    decoding: Decoding,
    batch_size: int = 64,
) -> float:
    """Return the fraction of prompts, 0 to 1, whose batched generation equals the one with batch size 1.

    Raises:
        ValueError: there are no prompts.
    """
    if not prompts:
        raise ValueError("agreement is undefined without prompts")
    single = generate(model, tokenizer, prompts, new_tokens=new_tokens, decoding=decoding, batch_size=1)
    batched = generate(model, tokenizer, prompts, new_tokens=new_tokens, decoding=decoding, batch_size=batch_size)
    return sum(one == other for one, other in zip(single, batched, strict=True)) / len(prompts)


def _decode_batch(model: PreTrainedModel, prompts: list[list[int]], pad: int) -> list[list[int]]:
    """Return the new tokens of each prompt, right-padded to the longest generation of the batch."""
    width = max(map(len, prompts))
    ids = [[pad] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    sequences = model.generate(
        input_ids=torch.tensor(ids, device=model.device), attention_mask=torch.tensor(mask, device=model.device)
    )
    tokens: list[list[int]] = sequences[:, width:].tolist()
    return tokens


@contextmanager
def _generation_mode(model: PreTrainedModel | PeftModel, settings: GenerationConfig) -> Iterator[PreTrainedModel]:
    """Yield the model without its PEFT wrapper, in eval mode, with ``settings`` as its generation config.

    Passing the config to ``generate`` is not enough: transformers fills its unset fields with the model's own sampling
    settings.
    """
    base: PreTrainedModel = getattr(model, "get_base_model", lambda: model)()
    training, own = model.training, base.generation_config
    model.eval()
    base.generation_config = settings
    try:
        yield base
    finally:
        base.generation_config = own
        model.train(training)


def _end_tokens(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    own = model.generation_config.eos_token_id
    known = own if isinstance(own, list) else [own]
    return sorted({token for token in (*known, tokenizer.eos_token_id) if token is not None})


def _text(tokenizer: PreTrainedTokenizerBase, row: list[int], ends: list[int]) -> str:
    length = next((index for index, token in enumerate(row) if token in ends), len(row))
    return str(tokenizer.decode(row[:length], skip_special_tokens=True))
