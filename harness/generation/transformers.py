"""Greedy answers to many prompts at once.

Prompts are sorted by length, padded on the left and decoded in batches; answers come back in the order of the prompts.
The batch size is a matter of speed: the padding is masked and positions count from the first real token, so only
rounding tells batches apart. ``agreement`` measures whether rounding ever decides an answer.
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
    """Return the greedy continuation of every prompt, at most ``new_tokens`` long, in the prompts' order.

    Special tokens are stripped, whitespace is not. Prompts are encoded as in training, and one that occurs several
    times is answered once; one that is too long keeps what the tokenizer puts before a text, and its own end. The model
    is left in the mode it was in. A batch that does not fit into memory is halved: longest prompts come first.

    Raises:
        ModelError: not even one prompt fits into memory.
    """
    if not prompts:
        return []
    distinct = list(dict.fromkeys(prompts))
    encoded = prompts_of(tokenizer, distinct)
    lengths = [len(prompt.ids) for prompt in encoded]
    if cut := sum(length > decoding.max_prompt for length in lengths):
        log.warning(
            "%d of %d prompts are longer than %d tokens and lost their beginning",
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
    answers: dict[str, str] = {}
    waiting = sorted(range(len(encoded)), key=lambda i: (-lengths[i], i))
    with _plainly(model, settings) as base, torch.inference_mode():
        while waiting:
            rows = waiting[:batch_size]
            try:
                written = _continue(
                    base, [encoded[i].ending(decoding.max_prompt) for i in rows], tokenizer.pad_token_id
                )
            except torch.OutOfMemoryError as error:
                batch_size = len(rows) // 2
                if batch_size == 0:
                    raise ModelError(
                        f"`{base.device}` has too little memory for one prompt and {new_tokens} new tokens; expected "
                        "room for the model and its cache. Choose a smaller `model` or `evaluation.new_tokens`."
                    ) from error
                log.warning("out of memory: going on with batches of %d", batch_size)
                continue
            answers |= {distinct[i]: _text(tokenizer, row, ends) for i, row in zip(rows, written, strict=True)}
            waiting = waiting[len(rows) :]
    return [answers[prompt] for prompt in prompts]


def too_long(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], decoding: Decoding) -> int:
    """Return how many prompts lose their beginning when they are answered."""
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
    """Return the share of prompts, 0 to 1, whose answer in a batch is the one they get alone.

    Raises:
        ValueError: there are no prompts.
    """
    if not prompts:
        raise ValueError("agreement is undefined without prompts")
    alone = generate(model, tokenizer, prompts, new_tokens=new_tokens, decoding=decoding, batch_size=1)
    together = generate(model, tokenizer, prompts, new_tokens=new_tokens, decoding=decoding, batch_size=batch_size)
    return sum(one == other for one, other in zip(alone, together, strict=True)) / len(prompts)


def _continue(model: PreTrainedModel, prompts: list[list[int]], pad: int) -> list[list[int]]:
    """Return the new tokens of each prompt, padded on the right where a row ended before the longest."""
    width = max(map(len, prompts))
    ids = [[pad] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    written = model.generate(
        input_ids=torch.tensor(ids, device=model.device), attention_mask=torch.tensor(mask, device=model.device)
    )
    tokens: list[list[int]] = written[:, width:].tolist()
    return tokens


@contextmanager
def _plainly(model: PreTrainedModel | PeftModel, settings: GenerationConfig) -> Iterator[PreTrainedModel]:
    """Give the model without its wrapper, in evaluation mode, under these settings alone.

    The library would fill what a passed configuration leaves open with the model's own sampling settings.
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
    length = next((place for place, token in enumerate(row) if token in ends), len(row))
    return str(tokenizer.decode(row[:length], skip_special_tokens=True))
