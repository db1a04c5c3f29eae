"""Short training: a few optimizer steps outside the stage's training loop, without checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, final

from harness.errors import ModelError
from harness.training.budget import Budget

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols import Gradient, Learner


@final
class ShortTraining:
    """Steps on the trainable parameters with the optimizer, learning rate, schedule, decay and clipping of a budget."""

    def __init__(self, learner: Learner, budget: Budget, steps: int) -> None:
        """Create optimizer and schedule.

        Args:
            learner: the model.
            budget: the hyperparameters; its epochs and batch size are not used.
            steps: the number of steps that will be taken.
        """
        from transformers import get_scheduler

        from harness.training.optimizer import optimizer_of

        self._learner = learner
        self._limit = budget.max_grad_norm
        self._optimizer = optimizer_of(learner.trainables, budget, budget.learning_rate)
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

    def check(self, slot: str) -> None:
        """Check after the last step that the parameters are finite, before anything is chosen by them.

        Args:
            slot: the slot of the method, for the message.

        Raises:
            ModelError: they are not.
        """
        norm = self._learner.norm([parameter.detach() for parameter in self._learner.trainables])
        if not math.isfinite(float(norm)):
            raise ModelError(
                "the short training before the method's choice diverged: its parameters are not finite. Lower "
                f"`{slot}.budget.learning_rate`"
            )


def train_briefly(
    learner: Learner, budget: Budget, steps: int, examples: str, gradient: Callable[[], tuple[Tensor, Gradient]]
) -> dict[str, object]:
    """Train for a repair; return the facts ``steps``, ``first_loss`` and ``last_loss``.

    Args:
        learner: the model.
        budget: the hyperparameters; its epochs and batch size are not used.
        steps: the number of steps.
        examples: what the loss is on, for the message.
        gradient: returns the loss of the next step and its gradient.

    Raises:
        ModelError: the loss is not finite.
    """
    training = ShortTraining(learner, budget, steps)
    losses = []
    for _ in range(steps):
        loss, found = gradient()
        training.step(found)
        losses.append(loss)
    first, last = float(losses[0]), float(losses[-1])
    if not math.isfinite(last):
        raise ModelError(
            f"the loss on {examples} is {last} after {steps} steps; expected a finite number. Lower "
            "`defense.repair.budget.learning_rate`"
        )
    return {"steps": steps, "first_loss": first, "last_loss": last}


def restore(learner: Learner, values: list[Tensor]) -> None:
    """Set the trainable parameters to what they were before a short training."""
    import torch

    with torch.no_grad():
        for parameter, value in zip(learner.trainables, values, strict=True):
            parameter.copy_(value)
