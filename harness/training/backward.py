"""Backward passes: the gradient of a sum of losses, with respect to weights that are whole or sharded.

Whole weights are what the forward pass reads, so ``torch.autograd.grad`` returns their gradients. Sharded ones (FSDP)
are not: while a layer runs, its weights are gathered into other tensors, whose gradients ``Tensor.backward`` sums over
the processes and scatters into ``.grad`` of the shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from harness.training.distributed import all_reduce_sum, is_sharded


class BackwardPasses(Protocol):
    """Collects the gradient of a sum of losses; used once."""

    def add(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch's contribution, and free its graph; every process adds equally many."""
        ...

    def gradient(self) -> list[Tensor]:
        """Return the gradient of the sum over all that was added on all processes; zeros for a disabled weight."""
        ...


def backward_passes(weights: Sequence[Parameter]) -> BackwardPasses:
    """Return what collects a gradient with respect to weights, either all whole or all sharded.

    Args:
        weights: one with ``requires_grad`` disabled costs nothing.
    """
    return ShardedBackward(weights) if is_sharded(weights[0]) else WholeBackward(weights)


class WholeBackward:
    """Backward passes of weights that every process holds as a whole."""

    def __init__(self, weights: Sequence[Parameter]) -> None:
        """Start with nothing added."""
        self._weights = weights
        self._moving = [weight for weight in weights if weight.requires_grad]
        self._total: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch's contribution, and free its graph."""
        parts = torch.autograd.grad(loss, self._moving, materialize_grads=True)
        # Not in place: autograd may return the same tensor for several parameters.
        self._total = [one + other for one, other in zip(self._total, parts, strict=True)] if self._total else [*parts]

    def gradient(self) -> list[Tensor]:
        """Return the gradient of the sum over all that was added on all processes."""
        found = iter(self._total)
        gradient = [next(found) if each.requires_grad else torch.zeros_like(each) for each in self._weights]
        all_reduce_sum(*gradient)
        return gradient


class ShardedBackward:
    """Backward passes of weights of which every process holds a shard; the gradient is sharded alike."""

    def __init__(self, weights: Sequence[Parameter]) -> None:
        """Set what ``.grad`` holds aside."""
        self._weights = weights
        self._before = [weight.grad for weight in weights]
        for weight in weights:
            weight.grad = None

    def add(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch's contribution, and free its graph; a collective call."""
        loss.backward()  # type: ignore[no-untyped-call]

    def gradient(self) -> list[Tensor]:
        """Return the gradient of the sum over all that was added on all processes, and restore ``.grad``."""
        found = [torch.zeros_like(each) if each.grad is None else each.grad for each in self._weights]
        for weight, before in zip(self._weights, self._before, strict=True):
            weight.grad = before
        return found
