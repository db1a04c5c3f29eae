"""Plain training inside a repair: AdamW with a budget's schedule and clipping, without checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from harness.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols import Gradient, Learner
    from harness.training.budget import Budget


def tune(
    learner: Learner, gradient: Callable[[], tuple[Tensor, Gradient]], *, budget: Budget, steps: int, data: str
) -> dict[str, object]:
    """Train the trainable parameters in place, as a stage of training does; return facts: steps, first and last loss.

    Args:
        learner: the model.
        gradient: returns the loss of a step and its gradient.
        budget: optimizer, schedule and clipping; its epochs and its batch size are not used.
        steps: number of optimizer steps.
        data: what is trained on, for messages.

    Raises:
        ModelError: the loss is not finite.
    """
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.AdamW(
        learner.trainables,
        lr=budget.learning_rate,
        betas=(budget.adam_beta1, budget.adam_beta2),
        eps=budget.adam_epsilon,
        weight_decay=budget.weight_decay,
    )
    scheduler = get_scheduler(
        budget.scheduler.value,
        optimizer,
        num_warmup_steps=math.ceil(steps * budget.warmup_ratio),
        num_training_steps=steps,
    )
    losses = []
    for _ in range(steps):
        loss, combined = gradient()
        learner.set_gradient(combined)
        if budget.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(learner.trainables, budget.max_grad_norm)
        optimizer.step()
        scheduler.step()
        losses.append(loss)
    optimizer.zero_grad()
    first, last = float(losses[0]), float(losses[-1])
    if not math.isfinite(last):
        raise ModelError(
            f"the loss on {data} is {last} after {steps} steps; expected a finite number. Lower "
            "`defense.repair.budget.learning_rate`"
        )
    return {"steps": steps, "first_loss": first, "last_loss": last}
