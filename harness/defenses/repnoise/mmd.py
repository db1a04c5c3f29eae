"""How far a sample lies from noise: the squared maximum mean discrepancy, over the rows of all processes.

Gretton et al.: "A Kernel Two-Sample Test", JMLR 2012. With five Gaussian kernels as RepNoise uses it: the middle
bandwidth is the mean squared distance between two members of the joint sample, the others are a half, a quarter, twice
and four times of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.training.distributed import all_reduce_sum, rank, world_size

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""In units of the mean squared distance."""


def squared_mmd(sample: Tensor, other: Tensor) -> Tensor:
    """Return the biased estimate ``mean k(X, X) + mean k(Y, Y) - 2 mean k(X, Y)``.

    The bandwidth is held constant under differentiation.

    Args:
        sample: ``X``, ``[rows, features]``, float32.
        other: ``Y``, with as many features.
    """
    joint = torch.cat([sample, other])
    squares = joint.square().sum(dim=1)
    distances = (squares[:, None] + squares[None, :] - 2 * joint @ joint.T).clamp(min=0)
    # Rounding leaves a little between a row and itself, and no gradient belongs there.
    distances = distances.masked_fill(torch.eye(len(joint), dtype=torch.bool, device=joint.device), 0.0)
    bandwidth = distances.detach().sum() / (len(joint) * (len(joint) - 1))
    kernel = torch.stack([torch.exp(-distances / (scale * bandwidth)) for scale in BANDWIDTHS]).sum(dim=0)
    rows = len(sample)
    return kernel[:rows, :rows].mean() + kernel[rows:, rows:].mean() - 2 * kernel[:rows, rows:].mean()


class Gathering:
    """Puts the rows of all processes together; a process's own rows stay differentiable.

    Args:
        rows: how many rows this process has.
        length: how long they are.
        device: where they are.
    """

    def __init__(self, rows: int, length: int, device: torch.device) -> None:
        """Tell each other how many rows there are, and how long they are."""
        sizes = torch.zeros((world_size(), 2), dtype=torch.int64, device=device)
        sizes[rank()] = torch.tensor([rows, length])
        all_reduce_sum(sizes)
        self._before = int(sizes[: rank(), 0].sum())
        self._length = int(sizes[:, 1].max())
        self.rows = int(sizes[:, 0].sum())

    def together(self, own: Tensor) -> Tensor:
        """Return the rows of all processes, ``[all rows, longest * features]``, filled up with zeros.

        Args:
            own: this process's, ``[rows, length, features]``.
        """
        whole = own.new_zeros((self.rows, self._length, own.shape[-1]))
        places = slice(self._before, self._before + len(own))
        whole[places, : own.shape[1]] = own.detach()
        all_reduce_sum(whole)
        if own.requires_grad:
            whole[places, : own.shape[1]] = own
        return whole.flatten(start_dim=1)
