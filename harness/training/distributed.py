"""Collective communication between the processes of a training run; without a process group the world size is 1."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor


def world_size() -> int:
    """Return the number of processes of the run."""
    return dist.get_world_size() if _grouped() else 1


def rank() -> int:
    """Return the rank of this process, counted from 0."""
    return dist.get_rank() if _grouped() else 0


def all_reduce_sum(*tensors: torch.Tensor) -> None:
    """Replace each tensor by its sum over the processes, in place."""
    if world_size() == 1:
        return
    for tensor in tensors:
        dist.all_reduce(tensor)


def is_sharded(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is distributed over the processes, each of which holds a part."""
    return isinstance(tensor, DTensor)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor with all its entries, summed over the processes where they are still to be; a collective call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def total_on_device(number: int, device: torch.device) -> torch.Tensor:
    """Return the sum of a number over the processes, a scalar on the device that the host need not wait for."""
    total = torch.full((), number, dtype=torch.int64, device=device)
    all_reduce_sum(total)
    return total


def broadcast_numbers(numbers: Sequence[int], device: torch.device) -> list[int]:
    """Return rank 0's numbers on every process."""
    if world_size() == 1:
        return list(numbers)
    tensor = torch.tensor(numbers, device=device)
    dist.broadcast(tensor, src=0)
    return [int(number) for number in tensor.tolist()]


def all_gather(own: Any) -> list[Any]:
    """Return every process's value, ordered by rank; a collective call.

    Args:
        own: plain values, and tensors on the CPU.
    """
    if world_size() == 1:
        return [own]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, own)
    return gathered


def barrier() -> None:
    """Block until all processes have called this function."""
    if world_size() > 1:
        dist.barrier()


def leave() -> None:
    """Destroy the process group, if there is one; no collective call may follow."""
    if _grouped():
        dist.destroy_process_group()


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()
