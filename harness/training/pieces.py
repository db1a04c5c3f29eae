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

from harness.corpora.encode import IGNORED, PLACES
from harness.corpora.transfer import on_device
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


def cut(
    batch: Mapping[str, Tensor],
    most: int | None,
    *,
    device: torch.device,
    width: Callable[[int], int] = int,
    like: Sequence[Piece] | None = None,
) -> list[Piece]:
    """Split a batch into micro-batches, the same number on every process; a collective call.

    A batch that is split is sorted by length first, so that the examples of a micro-batch need little padding. The
    order of a sum of floating-point numbers changes by it, and nothing else.

    Args:
        batch: this process's share, at least one example; ``input_ids``, ``attention_mask`` and ``labels``, each
            ``[batch, time]``, right-padded, on the CPU.
        most: the micro-batch size; None does not split.
        device: where the micro-batches are put.
        width: to which length a micro-batch with a given longest example is padded.
        like: split as these pieces of another batch are.
    """
    # A batch on another device is brought back once; everything about its positions is computed on the host.
    host = {name: tensor.cpu() for name, tensor in batch.items() if name != PLACES}
    labels = host["labels"]
    count = len(labels)
    supervised = int((labels[:, 1:] != IGNORED).sum())
    own = 1 if most is None else ceil(count / most)
    positions, total = _exchanged(supervised, own, agree=most is not None and like is None, device=device)
    lengths = host["attention_mask"].sum(dim=1).tolist()
    if like is not None:
        groups = [piece.rows for piece in like]
    elif most is None or total == 1:
        groups = [tuple(range(count))]
    else:
        order = sorted(range(count), key=lambda row: -lengths[row])
        groups = [tuple(order[number * most : (number + 1) * most]) for number in range(total)]
    pieces = []
    for number, rows in enumerate(groups):
        part = _part(host, rows, int(max(lengths[row] for row in rows)) if len(groups) > 1 and rows else None)
        pieces.append(_piece(number, part, rows, positions=positions, device=device, width=width))
    return pieces


def _exchanged(supervised: int, own: int, *, agree: bool, device: torch.device) -> tuple[Tensor, int]:
    """Return the supervised positions of all processes, on the device, and the largest number of pieces of any."""
    if world_size() == 1:
        return torch.full((), supervised, dtype=torch.int64, device=device), own
    counts = torch.zeros(1 + world_size(), dtype=torch.int64)
    counts[0], counts[1 + rank()] = supervised, own
    counts = on_device(counts, device)
    all_reduce_sum(counts)
    # Reading the number of pieces waits for the device; it is needed only where batches are split.
    return counts[0], int(counts[1:].max()) if agree else own


def _part(host: Mapping[str, Tensor], rows: tuple[int, ...], time: int | None) -> dict[str, Tensor]:
    """Return some examples of a batch, cut off after ``time`` tokens; without any, one that is not supervised."""
    if not rows:
        part = {name: tensor[:1, :1] for name, tensor in host.items()}
        return {**part, "labels": torch.full_like(part["labels"], IGNORED)}
    if time is None:
        return dict(host)
    return {name: tensor[list(rows), :time] for name, tensor in host.items()}


def _piece(
    number: int,
    part: Mapping[str, Tensor],
    rows: tuple[int, ...],
    *,
    positions: Tensor,
    device: torch.device,
    width: Callable[[int], int],
) -> Piece:
    time = part["labels"].shape[1]
    gap = width(time) - time
    if gap > 0:
        part = {name: _longer(tensor, gap, IGNORED if name == "labels" else 0) for name, tensor in part.items()}
    targets = part["labels"][:, 1:]
    mask = targets != IGNORED
    # The last position predicts nothing.
    indices = torch.nn.functional.pad(mask, (0, 1)).flatten().nonzero().squeeze(1)
    return Piece(
        number=number,
        batch={name: on_device(tensor, device) for name, tensor in part.items()},
        rows=rows,
        positions=positions,
        supervised=on_device(indices, device),
        targets=on_device(targets[mask], device),
        counts=tuple(mask.sum(dim=1).tolist()),
    )


def _longer(tensor: Tensor, gap: int, fill: int) -> Tensor:
    """Return a tensor ``[rows, time, ...]`` with ``gap`` more positions."""
    return torch.cat([tensor, tensor.new_full((len(tensor), gap, *tensor.shape[2:]), fill)], dim=1)


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
