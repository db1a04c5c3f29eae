"""Gaussian noise that belongs to rows: the same for a row of the global batch, whichever process has it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from harness.corpora.encode import IGNORED
from harness.corpora.transfer import on_device
from harness.engine.seeding import derive
from harness.training.distributed import all_reduce_sum, rank, world_size


def real_positions(batch: Mapping[str, Tensor]) -> Tensor:
    """Return where a batch has text to train on, ``[batch, time]``: no padding, and no row that only fills a share."""
    supervised = (batch["labels"] != IGNORED).any(dim=1, keepdim=True)
    return batch["attention_mask"].bool() & supervised


def gaussian(positions: Tensor, *, layers: int, width: int, seed: int, device: torch.device) -> Tensor:
    """Draw independent standard normals, ``[layers, batch, time, width]``; zero outside of the positions.

    Args:
        positions: where there is noise, ``[batch, time]``, on the CPU; this process's share of the global batch.
        layers: how many draws there are for each position.
        width: how many numbers a draw has.
        seed: of the global batch. Each of its rows has a generator of its own.
        device: where it is drawn. Devices of different kinds draw different numbers from a seed.
    """
    noise = torch.zeros((layers, *positions.shape, width), device=device)
    draw = torch.Generator(device=device)
    for place, mask in enumerate(positions):
        draw.manual_seed(derive(seed, str(rank() + place * world_size())))
        where = mask.nonzero().squeeze(1)
        drawn = torch.randn((layers, len(where), width), generator=draw, device=device)
        noise[:, place].index_copy_(1, on_device(where, device), drawn)
    return noise


def length(noise: Tensor) -> Tensor:
    """Return the L2 norm over the rows of all processes."""
    square: Tensor = torch.linalg.vector_norm(noise, dtype=torch.float32).square()
    all_reduce_sum(square)
    return square.sqrt()
