"""Random directions: seeded normal tensors for estimators of gradients.

Numbers are drawn on the CPU from a generator of their own, in float32, so that they are the same on every process and
device and nothing else that draws numbers is changed by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.engine.seeding import derive

if TYPE_CHECKING:
    from torch import Tensor


class Normals:
    """A stream of standard normal tensors, determined by a seed and names."""

    def __init__(self, seed: int, *names: str) -> None:
        """Seed the generator."""
        import torch

        self._generator = torch.Generator().manual_seed(derive(seed, *names))

    def draw(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return the next tensor of the stream, on the device and of the dtype of ``like``."""
        import torch

        return torch.randn(tuple(shape), generator=self._generator).to(like)


def matrix_shape(trainable: Tensor) -> tuple[int, int] | None:
    """Return the shape of a parameter as a matrix, or None for a scalar or a vector, which is perturbed densely."""
    if trainable.dim() < 2:
        return None
    return trainable.shape[0], trainable.numel() // trainable.shape[0]


def scaled(direction: Sequence[Tensor | None], kappa: Tensor) -> list[Tensor | None]:
    """Return ``kappa * Z``: the estimate of the gradient along a direction."""
    return [None if part is None else part * kappa for part in direction]
