"""SubZero: fine-tuning with forward passes only, along directions in a random subspace of each matrix.

Ziming Yu, Pan Zhou, Sike Wang, Jia Li, Mi Tian, Hua Huang: "Zeroth-Order Fine-Tuning of LLMs in Random Subspaces", ICCV
2025 (arXiv 2410.08989).

For a matrix of shape ``[m, n]``, ``U [m, r]`` and ``V [r, n]`` have orthonormal columns and rows (QR of normal matrices
in float32) and are redrawn every ``redraw_every`` steps; the core ``Z [r, r]`` is standard normal in every step. The
direction is ``sqrt(m n) / r * U Z V``, whose mean squared norm is ``m n`` as that of MeZO. ``kappa`` is measured with
two forward passes, and ``kappa`` times the direction takes the place of the gradient. A matrix that is not square is
reshaped to the factors of its size that are closest to each other, as the authors do for adapters. Scalars and vectors
are perturbed by dense normal numbers.

Deviations from the authors' code (commit cf6effd): every matrix is reshaped, not only those of adapters; the one-sided
difference quotient is not implemented.

Fidelity: hand-computed only. The equations and defaults were read in the authors' code; no vectors of it were compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt, sqrt
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, final

from harness.engine.checks import counts, positive
from harness.errors import ModelError, Problem
from harness.mechanisms.random_directions import Normals, matrix_shape, scaled

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols import Gradient


@final
@dataclass(frozen=True, kw_only=True)
class SubZero:
    """Settings of SubZero.

    Attributes:
        epsilon: length of the step along a direction; 1e-3 in the authors' scripts.
        rank: side of the core, r.
        redraw_every: steps between two draws of the subspace.
    """

    name: ClassVar[str] = "subzero"
    version: ClassVar[int] = 1
    keeps_moments: ClassVar[bool] = False

    epsilon: float = 1e-3
    rank: int = 8
    redraw_every: int = 2000

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return [*positive(self, "epsilon"), *counts(self, "rank", "redraw_every")]

    def start(self, trainables: Sequence[Tensor], seed: int) -> Subspaces:
        """Start a run.

        Raises:
            ModelError: a matrix has a side shorter than the rank.
        """
        return Subspaces(self, trainables, seed)


class Basis(NamedTuple):
    """A subspace of a matrix.

    Attributes:
        u: ``[m, r]``, orthonormal columns.
        v: ``[r, n]``, orthonormal rows.
    """

    u: Tensor
    v: Tensor


@final
class Subspaces:
    """One run of SubZero; all that it keeps between steps, the subspaces, follows from the seed and the step."""

    def __init__(self, settings: SubZero, trainables: Sequence[Tensor], seed: int) -> None:
        """Draw the first subspaces.

        Raises:
            ModelError: a matrix has a side shorter than the rank.
        """
        self._settings = settings
        self._trainables = trainables
        self._seed = seed
        self._sides = [
            squarest(trainable.numel()) if matrix_shape(trainable) is not None else None for trainable in trainables
        ]
        shortest = min((sides[0] for sides in self._sides if sides), default=settings.rank)
        if shortest < settings.rank:
            raise ModelError(
                f"`subzero` draws subspaces of rank {settings.rank}, but a trained matrix has, reshaped, a side of "
                f"{shortest}; set `finetune.update.rank` to at most that"
            )
        self._window = 0
        self._bases = self._draw_bases()

    @property
    def kept(self) -> Sequence[Tensor]:
        """The bases of the subspaces."""
        return [factor for basis in self._bases if basis is not None for factor in basis]

    def direction(self, step: int) -> Gradient:
        """Return the direction of a step."""
        if (window := step // self._settings.redraw_every) != self._window:
            self._window = window
            self._bases = self._draw_bases()
        rank = self._settings.rank
        normals = Normals(self._seed, "core", str(step))
        parts = []
        for trainable, basis in zip(self._trainables, self._bases, strict=True):
            if basis is None:
                parts.append(normals.draw(trainable.shape, trainable))
            else:
                core = normals.draw((rank, rank), trainable) * (sqrt(trainable.numel()) / rank)
                parts.append((basis.u @ core @ basis.v).view(trainable.shape))
        return parts

    def gradient(
        self,
        step: int,  # noqa: ARG002
        direction: Sequence[Tensor | None],
        kappa: Tensor,
    ) -> list[Tensor | None]:
        """Return ``kappa`` times the direction."""
        return scaled(direction, kappa)

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict: a direction follows from the seed and the step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing: a direction follows from the seed and the step."""

    def _draw_bases(self) -> list[Basis | None]:
        import torch

        normals = Normals(self._seed, "bases", str(self._window))
        bases: list[Basis | None] = []
        for trainable, sides in zip(self._trainables, self._sides, strict=True):
            if sides is None:
                bases.append(None)
                continue
            # On the CPU, so that every process and device has the same bases.
            drawn = [normals.draw((side, self._settings.rank), torch.empty(0)) for side in sides]
            u, v = (torch.linalg.qr(matrix).Q.to(trainable) for matrix in drawn)
            bases.append(Basis(u, v.T))
        return bases


def squarest(size: int) -> tuple[int, int]:
    """Return the factors of a number that are closest to each other, the smaller one first."""
    small = next(side for side in range(isqrt(size), 0, -1) if size % side == 0)
    return small, size // small
