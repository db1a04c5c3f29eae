"""Gaussian noise per example: identical for an example of the global batch, whichever process holds it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from harness.corpora.encode import IGNORED
from harness.corpora.transfer import on_device
from harness.engine.seeding import derive
from harness.training.distributed import all_reduce_sum, rank, world_size


def real_positions(batch: Mapping[str, Tensor]) -> Tensor:
    """Return the mask of real tokens, ``[batch, time]``: neither padding nor the filler example of an empty share."""
    supervised = (batch["labels"] != IGNORED).any(dim=1, keepdim=True)
    return batch["attention_mask"].bool() & supervised


def gaussian(positions: Tensor, *, layers: int, width: int, seed: int, device: torch.device) -> Tensor:
    """Sample independent standard normals, ``[layers, batch, time, width]``; zero outside ``positions``.

    Args:
        positions: the mask of positions with noise, ``[batch, time]``, on the CPU; this process's share of the batch.
        layers: number of noise vectors per position.
        width: size of a noise vector.
        seed: of the global batch; each of its examples has its own generator.
        device: where to sample. Devices of different kinds give different numbers for the same seed.
    """
    noise = torch.zeros((layers, *positions.shape, width), device=device)
    rng = torch.Generator(device=device)
    for row, mask in enumerate(positions):
        rng.manual_seed(derive(seed, str(rank() + row * world_size())))
        where = mask.nonzero().squeeze(1)
        sampled = torch.randn((layers, len(where), width), generator=rng, device=device)
        noise[:, row].index_copy_(1, on_device(where, device), sampled)
    return noise


def global_norm(noise: Tensor) -> Tensor:
    """Return the L2 norm over the examples of all processes."""
    square: Tensor = torch.linalg.vector_norm(noise, dtype=torch.float32).square()
    all_reduce_sum(square)
    return square.sqrt()
