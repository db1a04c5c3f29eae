"""Pieces: a batch is cut to fit into memory, and nothing else changes by it.

A method is given a process's share of the whole step's batch. What goes through the model is a piece of it, of at most
as many rows as fit; the shares of all pieces, over all processes, add up to the numbers of the whole. All processes go
through equally many pieces, since a sharded model is gathered by all of them together.
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
    """Return the most rows that a process takes through the model at once; None is all that it is given.

    Args:
        share: the most rows that a process is given at once.
        asked: the most rows that the settings allow; None is all.
        shrink: by how much fewer they should be, after memory ran out.

    Raises:
        ModelError: there are fewer rows than they should be divided by.
    """
    most = min(asked or share, share)
    if most < shrink:
        raise ModelError(
            f"a piece of {most} rows cannot be divided by {shrink} to save memory; expected a smaller model, shorter "
            "rows (`model.encoding.max_length`), more processes, or a device with more memory"
        )
    return most // shrink if most // shrink < share else None


def cut(batch: Mapping[str, Tensor], most: int | None) -> list[Piece]:
    """Cut a batch into pieces; all processes of a run come here together, and get equally many.

    Args:
        batch: this process's share, at least one row; ``input_ids``, ``attention_mask`` and ``labels``, right padded.
        most: rows of a piece, at most; None is all.
    """
    labels = batch["labels"]
    count = len(labels)
    own = 1 if most is None else ceil(count / most)
    told = torch.zeros(1 + world_size(), dtype=torch.int64, device=labels.device)
    told[0] = (labels[:, 1:] != IGNORED).sum()
    told[1 + rank()] = own
    all_reduce_sum(told)
    positions = told[0]
    number = own if most is None or world_size() == 1 else int(told[1:].max())
    if most is None or number == 1:
        return [Piece(0, batch, slice(0, count), positions)]
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    pieces = []
    for place in range(number):
        rows = slice(place * most, min((place + 1) * most, count))
        if place < own:
            time = max(lengths[rows])
            part = {name: tensor[rows, :time] for name, tensor in batch.items()}
        else:
            part = {name: tensor[:1, :1] for name, tensor in batch.items()}
            part["labels"] = torch.full_like(part["labels"], IGNORED)
        pieces.append(Piece(place, part, rows, positions))
    return pieces


def swept(pieces: Sequence[Piece], forward: Callable[[Piece], T]) -> tuple[list[T], Callable[[Piece], T]]:
    """Take the first of two sweeps, for a gradient that depends on a number of the whole batch.

    Args:
        pieces: of the batch.
        forward: takes a piece through the model.

    Returns:
        What it gave of each piece, without graphs; and how to have it once more with its graph, for the second sweep.
        A batch that is not cut goes through the model once: then the first has its graph, and is the second.
    """
    if len(pieces) == 1:
        only = forward(pieces[0])
        return [only], lambda _: only
    with torch.no_grad():
        return [forward(piece) for piece in pieces], forward
