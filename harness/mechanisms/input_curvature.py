"""Curvature of the error that a change of a layer makes on some text, as the Optimal Brain Surgeon estimates it.

With ``X`` the inputs of a linear layer, the squared error of its outputs after a change ``D`` of its matrix is
``||D X||^2``, whose second derivative in every row of ``D`` is ``H = 2 X X^T``. SparseGPT (Frantar and Alistarh, ICML
2023, arXiv 2301.00774) removes entries column by column: with ``R`` the upper Cholesky factor of ``H^-1``, what is
taken away in column ``j`` divided by ``R[j, j]`` is compensated in the later columns along ``R[j, :]``. A factor of
``H`` changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from harness.protocols import Learner
    from harness.protocols.learner import Batch

DAMPING = 0.01
"""Share of the mean diagonal that is added to the diagonal of ``H``."""


def inverse_root(curvature: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the inverse of a damped matrix, ``[in, in]``, in float64."""
    import torch

    damped = curvature.to(torch.float64, copy=True)
    diagonal = damped.diagonal()
    # A feature that is always zero has no curvature; any positive number does.
    diagonal[diagonal == 0] = 1
    diagonal += DAMPING * diagonal.mean()
    root: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    return root


def input_products(learner: Learner, modules: list[Module], batches: Iterable[Batch]) -> list[Tensor]:
    """Return ``X X^T`` of each module's inputs, ``[in, in]``, summed over the tokens of all batches."""
    import torch

    found: dict[int, Tensor] = {}
    with torch.no_grad():
        for batch in batches:
            for piece in learner.pieces(batch):
                with _accumulating(modules, found, piece.where(batch["attention_mask"])):
                    learner.predict(piece)
    return [found[place] for place in range(len(modules))]


@contextmanager
def _accumulating(modules: list[Module], found: dict[int, Tensor], positions: Tensor) -> Iterator[None]:
    """Within the context, add each module's ``X X^T`` at ``positions`` of the flattened batch to ``found``."""

    def hook_of(place: int) -> Any:
        def hook(_module: Module, inputs: tuple[Tensor, ...]) -> None:
            features = inputs[0].flatten(0, -2).index_select(0, positions).float()
            product = features.T @ features
            found[place] = found[place] + product if place in found else product

        return hook

    handles = [module.register_forward_pre_hook(hook_of(place)) for place, module in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
