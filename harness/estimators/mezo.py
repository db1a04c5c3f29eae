"""MeZO: fine-tuning with forward passes only, along dense normal directions.

Sadhika Malladi, Tianyu Gao, Eshaan Nichani, Alex Damian, Jason D. Lee, Danqi Chen, Sanjeev Arora: "Fine-Tuning Language
Models with Just Forward Passes", NeurIPS 2023 (arXiv 2305.17333).

In step ``t``, with ``z`` of independent standard normal numbers:
``kappa = (L(w + epsilon z) - L(w - epsilon z)) / (2 epsilon)``, and ``kappa * z`` takes the place of the gradient. Over
``z`` its mean is the gradient, up to O(epsilon^2), and its variance ``d + 1`` times the squared norm of the gradient,
for ``d`` parameters. With ``budget.optimizer: sgd`` and decoupled weight decay this is the published method,
``w <- w - eta (kappa z + wd w)``; with ``adamw`` it is MeZO-Adam. Two forward passes per step, no backward pass. A run
with SGD can be replayed from its seed and the numbers ``kappa``.

Deviations from the authors' code (commit 552cb1b): ``z`` comes from a generator of its own, on the CPU and in float32,
instead of the global one of the device; the weights are restored from a copy after each pass, so that no rounding error
stays, which costs the copy's memory; direction and copy exist as a whole during a step, where theirs regenerates one
tensor at a time. Their weights may be of half precision, those trained here are float32.

Fidelity: hand-computed only. The equations and defaults were read in the authors' code; no vectors of it were compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.engine.checks import positive
from harness.errors import Problem
from harness.mechanisms.random_directions import Normals, scaled

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols import Gradient


@final
@dataclass(frozen=True, kw_only=True)
class MeZO:
    """Settings of MeZO.

    Attributes:
        epsilon: length of the step along a direction; 1e-3 in the authors' scripts for all weights, 1e-2 for LoRA.
    """

    name: ClassVar[str] = "mezo"
    version: ClassVar[int] = 1
    keeps_moments: ClassVar[bool] = False

    epsilon: float = 1e-3

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return positive(self, "epsilon")

    def start(self, trainables: Sequence[Tensor], seed: int) -> DenseDirections:
        """Start a run."""
        return DenseDirections(trainables, seed)


@final
class DenseDirections:
    """One run of MeZO. It keeps nothing between steps."""

    kept: ClassVar[tuple[Tensor, ...]] = ()

    def __init__(self, trainables: Sequence[Tensor], seed: int) -> None:
        """Store the parameters and the seed."""
        self._trainables = trainables
        self._seed = seed

    def direction(self, step: int) -> Gradient:
        """Return ``z`` of a step."""
        normals = Normals(self._seed, str(step))
        return [normals.draw(trainable.shape, trainable) for trainable in self._trainables]

    def gradient(
        self,
        step: int,  # noqa: ARG002
        direction: Sequence[Tensor | None],
        kappa: Tensor,
    ) -> list[Tensor | None]:
        """Return ``kappa * z``."""
        return scaled(direction, kappa)

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict: a direction follows from the seed and the step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing: a direction follows from the seed and the step."""
