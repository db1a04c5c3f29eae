"""The processes that share one training run; a run without a process group is one process."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist


def world_size() -> int:
    """Return how many processes share the run."""
    return dist.get_world_size() if _grouped() else 1


def rank() -> int:
    """Return which of the processes this is, counted from 0."""
    return dist.get_rank() if _grouped() else 0


def all_reduce_sum(*tensors: torch.Tensor) -> None:
    """Replace each tensor by its sum over the processes, in place."""
    if world_size() == 1:
        return
    for tensor in tensors:
        dist.all_reduce(tensor)


def broadcast_numbers(numbers: Sequence[int], device: torch.device) -> list[int]:
    """Return the first process's numbers on every process."""
    if world_size() == 1:
        return list(numbers)
    told = torch.tensor(numbers, device=device)
    dist.broadcast(told, src=0)
    return [int(number) for number in told.tolist()]


def all_gather(own: Any) -> list[Any]:
    """Return what each process gives, by rank, on every process; all of them come here together.

    Args:
        own: plain values, and tensors on the CPU.
    """
    if world_size() == 1:
        return [own]
    everyones: list[Any] = [None] * world_size()
    dist.all_gather_object(everyones, own)
    return everyones


def barrier() -> None:
    """Return when every process has come here."""
    if world_size() > 1:
        dist.barrier()


def leave() -> None:
    """Leave the process group, if there is one: nothing is exchanged any more."""
    if _grouped():
        dist.destroy_process_group()


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()
