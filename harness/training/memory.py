"""Memory of a training: bytes on each GPU for what is trained, by arithmetic.

Without sharding each process holds all of it, so it does not depend on their number. Activations come on top; they
depend on the micro-batch and the length of examples, and gradient checkpointing reduces them.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.training.budget import Optimizer

FLOAT32 = 4
"""Bytes of a number; everything that training holds is float32."""
GRADIENTS = 2
"""Copies of the gradient: as a method combines it, and as the optimizer reads it."""
MOMENTS = {Optimizer.ADAMW: 2, Optimizer.SGD: 0}
"""Numbers that an optimizer keeps of each trained weight."""


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes on each GPU while a model's own weights are trained.

    Attributes:
        weights: all weights of the model, trained or not: the float32 masters, which the forward pass reads.
        gradients: of the trained weights.
        optimizer: its state.
        method: what the method holds besides.
    """

    weights: int
    gradients: int
    optimizer: int
    method: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.method

    @property
    def without_optimizer(self) -> int:
        """What would stay on a GPU if the state of the optimizer were in the host's memory."""
        return self.total - self.optimizer


def training_memory(
    parameters: int, trained: int, copies: int, optimizer: Optimizer = Optimizer.ADAMW
) -> TrainingMemory:
    """Return the memory of a training.

    Args:
        parameters: of the model.
        trained: how many of them are trained.
        copies: of the trained weights that the method holds, see ``protocols.TrainsWeights``.
        optimizer: of the budget.
    """
    return TrainingMemory(
        weights=FLOAT32 * parameters,
        gradients=FLOAT32 * GRADIENTS * trained,
        optimizer=FLOAT32 * MOMENTS[optimizer] * trained,
        method=FLOAT32 * copies * trained,
    )
