"""Memory of a training: bytes on each GPU for what is trained, by arithmetic.

Without sharding each process holds all of it, so it does not depend on their number. With FSDP each holds its share,
and in a backward pass some layers as a whole. Activations come on top; they depend on the micro-batch and the length of
examples, and gradient checkpointing reduces them.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.models.saved import Parts
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
        gathered: what is whole at once in a backward pass of sharded weights, at most.
    """

    weights: int
    gradients: int
    optimizer: int
    method: int
    gathered: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.method + self.gathered

    @property
    def without_optimizer(self) -> int:
        """What would stay on a GPU if the state of the optimizer were in the host's memory."""
        return self.total - self.optimizer


def training_memory(
    parameters: int,
    trained: int,
    copies: int,
    optimizer: Optimizer = Optimizer.ADAMW,
    *,
    shards: int = 1,
    parts: Parts | None = None,
) -> TrainingMemory:
    """Return the memory of a training.

    Args:
        parameters: of the model.
        trained: how many of them are trained.
        copies: of the trained weights that the method holds, see ``protocols.TrainsWeights``.
        optimizer: of the budget.
        shards: processes over which the weights are sharded; 1 if each process holds all of them.
        parts: where the parameters lie; read for sharded weights.
    """
    whole = 0
    if shards > 1 and parts is not None:
        # Of what is outside of the layers: weights, gradient, and the gradient as it is sent. Of the layers: weights of
        # one and of the next, gradient of one, and that of the one before as it is sent.
        whole = 3 * parts.outside + 4 * parts.layer
    return TrainingMemory(
        weights=_share(parameters, shards),
        gradients=GRADIENTS * _share(trained, shards),
        optimizer=MOMENTS[optimizer] * _share(trained, shards),
        method=copies * _share(trained, shards),
        gathered=FLOAT32 * whole,
    )


def _share(numbers: int, shards: int) -> int:
    """Return the bytes of a process's share of numbers."""
    return FLOAT32 * -(-numbers // shards)
