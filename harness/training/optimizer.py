"""The optimizer of a budget, for training outside of ``transformers.Trainer``."""

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.training.budget import Budget, Optimizer


def optimizer_of(parameters: Sequence[Tensor], budget: Budget, learning_rate: float) -> torch.optim.Optimizer:
    """Return the optimizer that ``Trainer`` would make for a budget."""
    if budget.optimizer is Optimizer.SGD:
        return torch.optim.SGD(parameters, lr=learning_rate, weight_decay=budget.weight_decay)
    return torch.optim.AdamW(
        parameters,
        lr=learning_rate,
        betas=(budget.adam_beta1, budget.adam_beta2),
        eps=budget.adam_epsilon,
        weight_decay=budget.weight_decay,
    )
