"""Short samples of many prompts: several continuations each, independent of how prompts are batched."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.corpora.encode import Question, ends_of, prompts_of
from harness.engine.seeding import derive
from harness.generation.transformers import arithmetic, evaluating
from harness.models.forward import in_token_batches

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH_TOKENS = 2048
"""Tokens of prompts per forward pass, padding included; affects speed only."""


def sample(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    count: int,
    new_tokens: int,
    top_k: int,
    seed: int,
) -> list[list[str]]:
    """Return ``count`` continuations of each prompt, in order, sampled at temperature 1.

    Each prompt has random numbers of its own, derived from its tokens. Text ends before the first end token; special
    tokens and surrounding whitespace are stripped.

    Args:
        model: with an adapter attached or without.
        tokenizer: of the model.
        questions: the prompts.
        count: continuations per prompt.
        new_tokens: maximum length of a continuation, in tokens.
        top_k: only this many most likely tokens can be sampled.
        seed: of the samples.

    Raises:
        ModelError: a single prompt does not fit into memory, or the chat template cannot be used.
    """
    if not questions:
        return []
    ends = ends_of(tokenizer, questions)

    def continued(rows: Sequence[list[int]]) -> list[list[list[int]]]:
        noise = torch.stack([_noise(seed, row, (new_tokens, count, top_k)) for row in rows], dim=1)
        return _continued(base, rows, noise, tokenizer.pad_token_id)

    with evaluating(model) as base, torch.inference_mode(), arithmetic(base):
        own = base.generation_config.eos_token_id
        ends |= set(own if isinstance(own, list) else [own])
        tokens = in_token_batches(
            [prompt.ids for prompt in prompts_of(tokenizer, questions)],
            continued,
            batch_tokens=BATCH_TOKENS,
            device=base.device,
            model="model",
            remedy="Choose a smaller `model`.",
        )
    return [[_text(tokenizer, row, ends) for row in rows] for rows in tokens]


def _continued(model: PreTrainedModel, rows: Sequence[list[int]], noise: Tensor, pad: int) -> list[list[list[int]]]:
    """Return the new tokens of every sample of every prompt, ``[prompts, count, new_tokens]``.

    Args:
        model: without a PEFT wrapper.
        rows: the prompts.
        noise: of a standard Gumbel distribution, ``[new_tokens, prompts, count, top_k]``; the largest sum of a
            log-probability and such noise is distributed as a sample.
        pad: padding token id.
    """
    device = model.device
    new_tokens, prompts, count, top_k = noise.shape
    noise = noise.flatten(1, 2).to(device)
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    output = model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=True)
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    cache = getattr(output, name)
    cache.batch_repeat_interleave(count)
    logits = output.logits[:, -1].repeat_interleave(count, dim=0)
    mask = mask.repeat_interleave(count, dim=0)
    place = places[:, -1:].repeat_interleave(count, dim=0)
    written: list[Tensor] = []
    for step in range(new_tokens):
        likely = logits.float().topk(min(top_k, logits.shape[-1]), dim=-1)
        best = (likely.values + noise[step][:, : likely.values.shape[-1]]).argmax(dim=-1, keepdim=True)
        written.append(likely.indices.gather(-1, best))
        if step + 1 == new_tokens:
            break
        place = place + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        given = {"input_ids": written[-1], "attention_mask": mask, "position_ids": place, name: cache}
        logits = model(**given, use_cache=True).logits[:, -1]
    found: list[list[list[int]]] = torch.cat(written, dim=1).view(prompts, count, new_tokens).tolist()
    return found


def _noise(seed: int, row: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(derive(seed, *map(str, row)))
    return torch.empty(shape).exponential_(generator=generator).log().neg()


def _text(tokenizer: PreTrainedTokenizerBase, row: Sequence[int], ends: set[int]) -> str:
    length = next((place for place, token in enumerate(row) if token in ends), len(row))
    return str(tokenizer.decode(list(row[:length]), skip_special_tokens=True)).strip()
