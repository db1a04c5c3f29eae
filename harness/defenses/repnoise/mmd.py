"""Squared maximum mean discrepancy (MMD) between two samples, over the examples of all processes.

Gretton et al.: "A Kernel Two-Sample Test", JMLR 2012. RepNoise uses a sum of five Gaussian kernels: the middle
bandwidth is the mean squared distance between two members of the joint sample, the others are 1/4, 1/2, 2 and 4 times
that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.training.distributed import all_reduce_sum, rank, world_size

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""In units of the mean squared distance."""


def squared_mmd(sample: Tensor, other: Tensor) -> Tensor:
    """Return the biased estimate ``mean k(X, X) + mean k(Y, Y) - 2 mean k(X, Y)``.

    No gradient flows through the bandwidth.

    Args:
        sample: ``X``, ``[n, features]``, float32.
        other: ``Y``, ``[m, features]``, float32.
    """
    joint = torch.cat([sample, other])
    squares = joint.square().sum(dim=1)
    distances = (squares[:, None] + squares[None, :] - 2 * joint @ joint.T).clamp(min=0)
    # The diagonal is zero up to rounding and must not receive a gradient.
    distances = distances.masked_fill(torch.eye(len(joint), dtype=torch.bool, device=joint.device), 0.0)
    bandwidth = distances.detach().sum() / (len(joint) * (len(joint) - 1))
    kernel = torch.stack([torch.exp(-distances / (scale * bandwidth)) for scale in BANDWIDTHS]).sum(dim=0)
    rows = len(sample)
    return kernel[:rows, :rows].mean() + kernel[rows:, rows:].mean() - 2 * kernel[:rows, rows:].mean()


class DifferentiableGather:
    """Concatenates the examples of all processes; gradients flow to the process's own examples.

    Args:
        rows: number of this process's examples.
        length: their length in tokens.
        device: of the tensors.
    """

    def __init__(self, rows: int, length: int, device: torch.device) -> None:
        """Exchange the number and the length of every process's examples; a collective call."""
        sizes = torch.zeros((world_size(), 2), dtype=torch.int64)
        sizes[rank()] = torch.tensor([rows, length])
        if world_size() > 1:
            everyones = sizes.to(device)
            all_reduce_sum(everyones)
            sizes = everyones.cpu()
        self._before = int(sizes[: rank(), 0].sum())
        self._length = int(sizes[:, 1].max())
        self.rows = int(sizes[:, 0].sum())

    def __call__(self, own: Tensor) -> Tensor:
        """Return the examples of all processes, ``[global rows, longest * features]``, zero-padded; a collective call.

        Args:
            own: this process's examples, ``[rows, length, features]``.
        """
        gathered = own.new_zeros((self.rows, self._length, own.shape[-1]))
        own_rows = slice(self._before, self._before + len(own))
        gathered[own_rows, : own.shape[1]] = own.detach()
        all_reduce_sum(gathered)
        if own.requires_grad:
            gathered[own_rows, : own.shape[1]] = own
        return gathered.flatten(start_dim=1)
