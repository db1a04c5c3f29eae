"""Subspaces of the outputs of adapted layers, from examples, and the main directions of their matrices.

The right singular vectors of the outputs ``X W^T``, one row per token, are the eigenvectors of ``W X^T X W^T``, which
is summed over micro-batches and processes in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from harness.mechanisms.hidden_states import answer_positions
from harness.protocols import Learner, Piece
from harness.training.distributed import all_reduce_sum

ITERATIONS = 30
"""Power iterations of the decomposition of a matrix, as in the authors' code."""


class Main(NamedTuple):
    """The main part of a matrix, ``left * values @ right.T``.

    Attributes:
        left: ``[out, rank]``.
        values: ``[rank]``, descending; zero where the matrix has no more directions.
        right: ``[in, rank]``.
    """

    left: Tensor
    values: Tensor
    right: Tensor


class OutputSums:
    """Sums the outer products of the outputs of linear layers, without their bias, at the positions of answers.

    Args:
        learner: the model, whose adapter does not change the output yet.
        layers: the linear layers below adapters, by name.
    """

    def __init__(self, learner: Learner, layers: Mapping[str, Module]) -> None:
        """Store the parts."""
        self._learner = learner
        self._layers = layers

    def of(self, batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the sums over some batches of all processes, ``[out, out]`` in float64, by name of the layer.

        Args:
            batches: this process's shares.
        """
        found: dict[str, Tensor] = {}
        for batch in batches:
            positions = answer_positions(batch)
            for piece in self._learner.pieces(batch):
                with torch.no_grad(), self._summed(piece, positions, found):
                    self._learner.predict(piece)
        all_reduce_sum(*found.values())
        return found

    @contextmanager
    def _summed(self, piece: Piece, positions: Tensor, found: dict[str, Tensor]) -> Iterator[None]:
        where = piece.where(positions)

        def add(module: Any, _inputs: Any, output: Tensor, *, name: str) -> None:
            rows = output.flatten(0, -2).index_select(0, where).double()
            if module.bias is not None:
                rows = rows - module.bias.double()
            product = rows.T @ rows
            found[name] = found[name] + product if name in found else product

        with ExitStack() as stack:
            for name, layer in self._layers.items():
                stack.callback(layer.register_forward_hook(partial(add, name=name)).remove)
            yield


def directions(summed: Tensor, rank: int) -> Tensor:
    """Return the eigenvectors of the highest eigenvalues of a sum of outer products as columns, ``[out, rank]``."""
    vectors: Tensor = torch.linalg.eigh(summed).eigenvectors
    return vectors[:, -rank:].float()


def main_part(matrix: Tensor, rank: int) -> Main:
    """Return the main part of a matrix, on the CPU; the same for the same matrix, and global random state is kept."""
    matrix = matrix.detach().cpu().float()
    kept = min(rank, *matrix.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, values, right = torch.svd_lowrank(matrix, q=kept, niter=ITERATIONS)
    gap = rank - kept
    if gap:
        left, right = (torch.nn.functional.pad(part, (0, gap)) for part in (left, right))
        values = torch.nn.functional.pad(values, (0, gap))
    return Main(left, values, right)
