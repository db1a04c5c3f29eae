"""Decoding with ``generate`` of transformers: left-padded batches that run until their last sequence ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from harness.generation.token_choice import Rules, TokenChoice

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int,
    rules: Rules,
    pad: int,
    seeds: Sequence[int] | None = None,
) -> Iterator[tuple[int, list[int]]]:
    """Yield (index of the prompt, new tokens) batch by batch; padding may follow an end token.

    Args:
        model: a causal language model in evaluation mode, not wrapped by PEFT.
        prompts: token ids; sorting them by length minimizes padding.
        batch_size: sequences per batch.
        rules: how tokens are chosen.
        pad: padding token id.
        seeds: of the random numbers of each prompt; None if tokens are not sampled.
    """
    seeds = seeds or [0] * len(prompts)
    settings = GenerationConfig(
        max_new_tokens=rules.longest,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=list(rules.ends) or None,
        pad_token_id=pad,
    )
    for start in range(0, len(prompts), batch_size):
        batch = slice(start, start + batch_size)
        with _configured(model, settings):
            written = _continue(model, prompts[batch], seeds[batch], rules, pad)
        yield from enumerate(written, start)


def _continue(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], seeds: Sequence[int], rules: Rules, pad: int
) -> list[list[int]]:
    """Return the new tokens of each prompt; of greedy decoding, right padded to the longest."""
    width = max(map(len, prompts))
    ids = [[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    given = {"input_ids": torch.tensor(ids, device=model.device)}
    given["attention_mask"] = torch.tensor(mask, device=model.device)
    if rules.greedy:
        tokens: list[list[int]] = model.generate(**given)[:, width:].tolist()
        return tokens
    chosen = _Chosen(rules, seeds, width, model.device)
    written = model.generate(
        **given,
        logits_processor=LogitsProcessorList([chosen]),
        stopping_criteria=StoppingCriteriaList([_Ended(chosen)]),
    )
    return [row[:length] for row, length in zip(written[:, width:].tolist(), chosen.lengths.tolist(), strict=True)]


class _Chosen(LogitsProcessor):  # type: ignore[misc]
    """Leaves ``generate`` no token but the chosen one.

    Attributes:
        ended: whether each sequence has ended.
        lengths: number of new tokens of each sequence.
    """

    def __init__(self, rules: Rules, seeds: Sequence[int], width: int, device: torch.device) -> None:
        self._choice, self._width = TokenChoice(rules, rows=len(seeds), device=device), width
        self._choice.enter(torch.arange(len(seeds), device=device), seeds)
        self.ended = torch.zeros(len(seeds), dtype=torch.bool, device=device)
        self.lengths = torch.zeros(len(seeds), dtype=torch.int64, device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        new, last = self._choice(scores, torch.full_like(self.lengths, input_ids.shape[1] - self._width))
        self.lengths += ~self.ended
        self.ended |= last
        return torch.full_like(scores, float("-inf")).scatter(1, new[:, None], 0.0)


class _Ended(StoppingCriteria):  # type: ignore[misc]
    """Ends the sequences whose answers have their maximum length."""

    def __init__(self, chosen: _Chosen) -> None:
        self._chosen = chosen

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:  # noqa: ARG002
        return self._chosen.ended


@contextmanager
def _configured(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """Replace the model's generation config: the library takes values missing in a passed config from it."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own
