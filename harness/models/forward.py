"""Forward passes over many token sequences in batches of a number of tokens, halved whenever memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from harness.corpora.batches import by_tokens
from harness.engine import gpu
from harness.errors import ModelError

log = logging.getLogger(__name__)

T = TypeVar("T")
Rows = Sequence[list[int]]


def in_token_batches(
    encoded: Rows,
    forward: Callable[[Rows], Sequence[T]],
    *,
    batch_tokens: int,
    device: torch.device,
    model: str = "judge",
    remedy: str = "Set `judge.dtype` to `bfloat16`, or choose another `judge`.",
) -> list[T]:
    """Return what a model computes for every sequence, in the order of the sequences.

    Args:
        encoded: the tokens of each sequence.
        forward: computes a batch; returns one result per sequence.
        batch_tokens: tokens per forward pass, including padding.
        device: the model's device, for the error.
        model: what the model is, for the error.
        remedy: what to do about too little memory, for the error.

    Raises:
        ModelError: a single sequence does not fit into memory.
    """
    found: dict[int, T] = {}
    while pending := sorted((i for i in range(len(encoded)) if i not in found), key=lambda i: -len(encoded[i])):
        try:
            for part in by_tokens([len(encoded[i]) for i in pending], batch_tokens):
                found |= zip(pending[part], forward([encoded[i] for i in pending[part]]), strict=True)
        except torch.OutOfMemoryError as error:
            longest = max(len(encoded[i]) for i in pending if i not in found)
            if batch_tokens <= longest:
                raise ModelError(
                    f"`{device}` has too little memory for the {model} and a text of {longest} tokens; "
                    f"expected a device with more memory. {remedy}"
                ) from error
            batch_tokens //= 2
            log.warning("out of memory: continuing with %d tokens per forward pass", batch_tokens)
        if len(found) < len(encoded):
            gpu.release()
    return [found[i] for i in range(len(encoded))]
