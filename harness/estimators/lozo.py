"""LOZO: fine-tuning with forward passes only, along directions of low rank whose right factor changes rarely.

Yiming Chen, Yuan Zhang, Liyuan Cao, Kun Yuan, Zaiwen Wen: "Enhancing Zeroth-order Fine-tuning for Language Models with
Low-rank Structures", ICLR 2025 (arXiv 2410.07698).

For a matrix of shape ``[m, n]``, ``Z = U V^T`` with standard normal factors: ``U [m, r]`` is drawn in every step,
``V [n, r]`` every ``redraw_every`` steps. ``kappa = (L(W + epsilon Z) - L(W - epsilon Z)) / (2 epsilon)`` is measured
with two forward passes, and ``kappa Z`` takes the place of the gradient. The mean of ``kappa Z`` is ``r`` times the
gradient; the learning rate absorbs the factor, as in the authors' code (the paper divides by ``r``). Scalars and
vectors are perturbed by dense normal numbers.

Deviations from the authors' code (commit 5d1ade5): in a step in which ``V`` is redrawn, their update draws the factors
in another order than their perturbation did and moves along a ``U`` that was not measured; here both are one direction
in every step. LOZO with momentum is not implemented.

Fidelity: hand-computed only. The equations and defaults were read in the authors' code; no vectors of it were compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.engine.checks import counts, positive
from harness.errors import Problem
from harness.mechanisms.random_directions import Normals, matrix_shape, scaled

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols import Gradient


@final
@dataclass(frozen=True, kw_only=True)
class LOZO:
    """Settings of LOZO.

    Attributes:
        epsilon: length of the step along a direction; 1e-3 in the authors' scripts.
        rank: rank of a direction, r; 1, 2 or 4 in the authors' scripts.
        redraw_every: steps between two draws of the right factor, nu; 50 or 100 in the authors' scripts.
    """

    name: ClassVar[str] = "lozo"
    version: ClassVar[int] = 1
    keeps_moments: ClassVar[bool] = False

    epsilon: float = 1e-3
    rank: int = 2
    redraw_every: int = 50

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return [*positive(self, "epsilon"), *counts(self, "rank", "redraw_every")]

    def start(self, trainables: Sequence[Tensor], seed: int) -> SlowFactors:
        """Start a run."""
        return SlowFactors(self, trainables, seed)


@final
class SlowFactors:
    """One run of LOZO; all that it keeps between steps, the right factors, follows from the seed and the step."""

    def __init__(self, settings: LOZO, trainables: Sequence[Tensor], seed: int) -> None:
        """Draw the first right factors."""
        self._settings = settings
        self._trainables = trainables
        self._seed = seed
        self._window = 0
        self._right = self._draw_right()

    @property
    def kept(self) -> Sequence[Tensor]:
        """The right factors."""
        return [factor for factor in self._right if factor is not None]

    def direction(self, step: int) -> Gradient:
        """Return ``Z`` of a step."""
        if (window := step // self._settings.redraw_every) != self._window:
            self._window = window
            self._right = self._draw_right()
        normals = Normals(self._seed, "left", str(step))
        parts = []
        for trainable, right in zip(self._trainables, self._right, strict=True):
            if right is None:
                parts.append(normals.draw(trainable.shape, trainable))
            else:
                left = normals.draw((len(trainable), self._settings.rank), trainable)
                parts.append((left @ right.T).view(trainable.shape))
        return parts

    def gradient(
        self,
        step: int,  # noqa: ARG002
        direction: Sequence[Tensor | None],
        kappa: Tensor,
    ) -> list[Tensor | None]:
        """Return ``kappa Z``."""
        return scaled(direction, kappa)

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict: a direction follows from the seed and the step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing: a direction follows from the seed and the step."""

    def _draw_right(self) -> list[Tensor | None]:
        normals = Normals(self._seed, "right", str(self._window))
        shapes = [(trainable, matrix_shape(trainable)) for trainable in self._trainables]
        return [
            normals.draw((shape[1], self._settings.rank), trainable) if shape else None for trainable, shape in shapes
        ]
