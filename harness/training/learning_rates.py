"""Learning rates per trainable parameter: one parameter group of the optimizer for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.nn import Parameter
from torch.optim import Optimizer


def scale_learning_rates(optimizer: Optimizer, trainables: Sequence[Parameter], factors: Sequence[float]) -> None:
    """Multiply the learning rate of parameters, in place, before the schedule is created.

    The history reports the learning rate of the first group: that of the budget, where a parameter has it.

    Args:
        optimizer: has taken no step; its groups are split.
        trainables: all parameters that it updates.
        factors: one for each of them.
    """
    by_parameter = {id(parameter): factor for parameter, factor in zip(trainables, factors, strict=True)}
    groups: list[dict[str, Any]] = []
    for factor in sorted(set(factors), key=lambda each: (each != 1.0, each)):
        for group in optimizer.param_groups:
            own = [parameter for parameter in group["params"] if by_parameter[id(parameter)] == factor]
            if own:
                groups.append({**group, "params": own, "lr": group["lr"] * factor})
    optimizer.param_groups[:] = groups
