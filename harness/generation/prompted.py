"""Causal language models that classify by continuing a prompt: loading, the written verdict, the next token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from harness.corpora.encode import prompts_of
from harness.errors import ModelError
from harness.generation.decoding import Decoding
from harness.generation.transformers import generate
from harness.models.forward import in_token_batches
from harness.models.saved import Opened

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T")

BATCH_TOKENS = 8192
"""Tokens per forward pass of ``next_token``, including padding; affects speed only."""


def open_prompted(folder: Path, *, dtype: str, device: str, adapter: Path | None = None) -> Opened:
    """Load a model that classifies, and its tokenizer.

    Args:
        folder: configuration and weights, as safetensors, and the tokenizer unless there is an adapter.
        dtype: the name of a torch dtype.
        device: a torch device string.
        adapter: a folder with a LoRA adapter of the model, attached unmerged, and the tokenizer.

    Raises:
        ModelError: the model does not fit into memory, or the installed libraries cannot load it.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(adapter or folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True
        ).to(device)
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, adapter).get_base_model()
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"`{device}` has too little memory for the judge in {folder} with {dtype}; expected a device with more "
            "memory. Set `judge.dtype` to `bfloat16`, or choose another `judge`."
        ) from error
    except (ImportError, ValueError, OSError, SafetensorError) as error:
        raise ModelError(
            f"the installed libraries cannot load the judge in {folder}: {error}. Check that the folder is complete, "
            "or upgrade `transformers`."
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return Opened(model.requires_grad_(False).eval(), tokenizer)


def shortened(tokenizer: PreTrainedTokenizerBase, text: str, max_tokens: int, *, special: bool = False) -> str:
    """Return a text up to its first ``max_tokens`` tokens.

    Args:
        tokenizer: of the judge.
        text: an answer.
        max_tokens: number of tokens, including what the tokenizer puts before a text if ``special``.
        special: encode with the special tokens and leave them in the text.
    """
    ids = tokenizer(text, add_special_tokens=special, truncation=False, verbose=False)["input_ids"]
    if len(ids) <= max_tokens and not special:
        return text
    return str(tokenizer.decode(ids[:max_tokens]))


def written(opened: Opened, prompts: Sequence[str], *, new_tokens: int) -> list[str | None]:
    """Return the greedy continuation of every prompt without special tokens; None if a prompt exceeds the context.

    Args:
        opened: the judge.
        prompts: without the beginning-of-sequence token, which the tokenizer adds.
        new_tokens: maximum length of a continuation, in tokens.

    Raises:
        ModelError: a single prompt does not fit into memory.
    """
    room = _context(opened.model) - new_tokens

    def continuations(fitting: Sequence[str]) -> list[str]:
        return generate(
            opened.model, opened.tokenizer, fitting, new_tokens=new_tokens, decoding=Decoding(max_prompt=room)
        )

    return _fitting(opened.tokenizer, prompts, room, continuations)


def next_token(opened: Opened, prompts: Sequence[str], tokens: Sequence[str]) -> list[list[float] | None]:
    """Return the probabilities of some tokens after every prompt, relative to each other; None if it is too long.

    Args:
        opened: the judge.
        prompts: without the beginning-of-sequence token, which the tokenizer adds.
        tokens: entries of the vocabulary.

    Raises:
        ModelError: a token is not in the vocabulary, or a single prompt does not fit into memory.
    """
    vocabulary = opened.tokenizer.get_vocab()
    if missing := [token for token in tokens if token not in vocabulary]:
        raise ModelError(
            f"the judge's tokenizer has no token {', '.join(missing)}; expected the model that this judge is for. "
            "Check `judge.repo`"
        )
    ids = [vocabulary[token] for token in tokens]

    def probabilities(fitting: Sequence[str]) -> list[list[float]]:
        encoded = [prompt.ids for prompt in prompts_of(opened.tokenizer, fitting)]
        forward = partial(_next_token, opened.model, ids)
        return in_token_batches(encoded, forward, batch_tokens=BATCH_TOKENS, device=opened.model.device)

    return _fitting(opened.tokenizer, prompts, _context(opened.model) - 1, probabilities)


def _fitting(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    room: int,
    compute: Callable[[Sequence[str]], Sequence[T]],
) -> list[T | None]:
    lengths = [len(prompt.ids) for prompt in prompts_of(tokenizer, prompts)]
    fitting = [place for place, length in enumerate(lengths) if length <= room]
    found = dict(zip(fitting, compute([prompts[place] for place in fitting]), strict=True)) if fitting else {}
    return [found.get(place) for place in range(len(prompts))]


def _context(model: PreTrainedModel) -> int:
    return int(model.config.max_position_embeddings)


@torch.inference_mode()
def _next_token(model: PreTrainedModel, ids: list[int], rows: Sequence[list[int]]) -> list[list[float]]:
    """Return the softmax over ``ids`` of the logits after each row, ``[rows, ids]``; rows are padded on the right."""
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    longest = max(map(len, rows))
    padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=model.device)
    mask = torch.arange(longest, device=model.device)[None, :] < lengths[:, None]
    # The logits of every position would take gigabytes: Gemma has 256,000 tokens.
    hidden = model.get_decoder()(padded, attention_mask=mask.long(), use_cache=False).last_hidden_state
    last = hidden[torch.arange(len(rows), device=model.device), lengths - 1]
    values: list[list[float]] = model.get_output_embeddings()(last)[:, ids].float().softmax(-1).tolist()
    return values
