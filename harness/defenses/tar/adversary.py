"""TAR's simulated fine-tuning adversary."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from harness.protocols import Learner


class Adversary:
    """Fine-tunes a copy of the current trainable parameters with AdamW; the model is unchanged.

    Attributes:
        weights: the copy.

    Args:
        learner: the model.
        learning_rate: the adversary's learning rate.
        weight_decay: its decoupled weight decay.
    """

    def __init__(self, learner: Learner, learning_rate: float, weight_decay: float) -> None:
        """Copy the trainable parameters."""
        self.weights = [trainable.detach().clone() for trainable in learner.trainables]
        self._learner = learner
        self._optimizer = torch.optim.AdamW(self.weights, lr=learning_rate, weight_decay=weight_decay)

    def step(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Take one step; return the loss before it."""
        with self._learner.with_weights(self.weights):
            loss, gradient = self._learner.gradient(batch)
        for weight, part in zip(self.weights, gradient, strict=True):
            weight.grad = part
        self._optimizer.step()
        return loss
