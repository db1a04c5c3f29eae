"""Short training: a few optimizer steps outside the stage's training loop, without checkpoints."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, final

from harness.training.budget import Budget

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols import Gradient, Learner


@final
class ShortTraining:
    """AdamW on the trainable parameters with the learning rate, schedule, decay and clipping of a budget."""

    def __init__(self, learner: Learner, budget: Budget, steps: int) -> None:
        """Create optimizer and schedule.

        Args:
            learner: the model.
            budget: the hyperparameters; its epochs and batch size are not used.
            steps: the number of steps that will be taken.
        """
        import torch
        from transformers import get_scheduler

        self._learner = learner
        self._limit = budget.max_grad_norm
        self._optimizer = torch.optim.AdamW(
            learner.trainables,
            lr=budget.learning_rate,
            betas=(budget.adam_beta1, budget.adam_beta2),
            eps=budget.adam_epsilon,
            weight_decay=budget.weight_decay,
        )
        self._scheduler = get_scheduler(
            budget.scheduler.value,
            self._optimizer,
            num_warmup_steps=math.ceil(steps * budget.warmup_ratio),
            num_training_steps=steps,
        )

    def step(self, gradient: Gradient) -> None:
        """Take a step."""
        import torch

        self._learner.set_gradient(gradient)
        if self._limit is not None:
            torch.nn.utils.clip_grad_norm_(self._learner.trainables, self._limit)
        self._optimizer.step()
        self._scheduler.step()
        self._optimizer.zero_grad()


def restore(learner: Learner, values: list[Tensor]) -> None:
    """Set the trainable parameters to what they were before a short training."""
    import torch

    with torch.no_grad():
        for parameter, value in zip(learner.trainables, values, strict=True):
            parameter.copy_(value)
