"""Pieces (micro-batches): a batch is split to fit into memory, without changing results beyond rounding.

A method receives this process's share of the global batch. The model processes it in micro-batches of at most
``rows_at_once`` examples, whose contributions, summed over all processes, give the loss and gradient of the global
batch. All processes run the same number of micro-batches, because the forward pass of a sharded model is a collective
operation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import TypeVar

import torch
from torch import Tensor

from harness.corpora.encode import IGNORED
from harness.errors import ModelError
from harness.protocols import Piece
from harness.training.distributed import all_reduce_sum, rank, world_size

T = TypeVar("T")


def rows_at_once(share: int, asked: int | None, shrink: int) -> int | None:
    """Return the micro-batch size of a process; None if its whole share fits into one micro-batch.

    Args:
        share: the largest batch that the process receives.
        asked: the configured micro-batch size; None does not limit it.
        shrink: factor by which to reduce it, after the device ran out of memory.

    Raises:
        ModelError: the micro-batch is smaller than the factor.
    """
    size = min(asked or share, share)
    if size < shrink:
        raise ModelError(
            f"a micro-batch of {size} examples cannot be divided by {shrink} to save memory; use a smaller model, "
            "shorter examples (`model.encoding.max_length`), more processes, or a device with more memory"
        )
    return size // shrink if size // shrink < share else None


def cut(batch: Mapping[str, Tensor], most: int | None) -> list[Piece]:
    """Split a batch into micro-batches, the same number on every process; a collective call.

    Args:
        batch: this process's share, at least one example; ``input_ids``, ``attention_mask`` and ``labels``, each
            ``[batch, time]``, right-padded.
        most: the micro-batch size; None does not split.
    """
    labels = batch["labels"]
    count = len(labels)
    own = 1 if most is None else ceil(count / most)
    counts = torch.zeros(1 + world_size(), dtype=torch.int64, device=labels.device)
    counts[0] = (labels[:, 1:] != IGNORED).sum()
    counts[1 + rank()] = own
    all_reduce_sum(counts)
    positions = counts[0]
    total = own if most is None or world_size() == 1 else int(counts[1:].max())
    if most is None or total == 1:
        return [Piece(0, batch, slice(0, count), positions)]
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    pieces = []
    for number in range(total):
        rows = slice(number * most, min((number + 1) * most, count))
        if number < own:
            time = max(lengths[rows])
            part = {name: tensor[rows, :time] for name, tensor in batch.items()}
        else:
            part = {name: tensor[:1, :1] for name, tensor in batch.items()}
            part["labels"] = torch.full_like(part["labels"], IGNORED)
        pieces.append(Piece(number, part, rows, positions))
    return pieces


def first_pass(pieces: Sequence[Piece], forward: Callable[[Piece], T]) -> tuple[list[T], Callable[[Piece], T]]:
    """Run the first of two passes, for a gradient that depends on a statistic of the whole batch.

    Args:
        pieces: the micro-batches of the batch.
        forward: runs the model on a micro-batch.

    Returns:
        The outputs of the first pass, without autograd graph, and the function that computes an output again with its
        graph, for the second pass. A single micro-batch goes through the model once: its output keeps its graph and is
        returned by the function too.
    """
    if len(pieces) == 1:
        only = forward(pieces[0])
        return [only], lambda _: only
    with torch.no_grad():
        return [forward(piece) for piece in pieces], forward
