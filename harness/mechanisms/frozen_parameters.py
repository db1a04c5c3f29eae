"""Frozen parameters: a step in which some of the trainable parameters get no gradient and are not updated at all.

Their entry in the gradient is None, so the optimizer skips them: weight decay and the moments of Adam do not move them
either, which a gradient of zeros would not prevent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from harness.protocols import Batch, Learner


class PartialGradient(NamedTuple):
    """The mean loss of a batch, and its gradient; None where a parameter is frozen."""

    loss: Tensor
    gradient: list[Tensor | None]


def partial_gradient(learner: Learner, batch: Batch, frozen: Sequence[bool]) -> PartialGradient:
    """Return the gradient of the trainable parameters that are not frozen; the backward pass skips the others.

    Args:
        learner: the model.
        batch: as for ``Learner.gradient``.
        frozen: for each trainable parameter, whether it is frozen in this step; not all of them.
    """
    skipped = [parameter for parameter, is_frozen in zip(learner.trainables, frozen, strict=True) if is_frozen]
    with without_gradient(skipped):
        loss, gradient = learner.gradient(batch)
    return PartialGradient(
        loss, [None if is_frozen else part for part, is_frozen in zip(gradient, frozen, strict=True)]
    )


@contextmanager
def without_gradient(parameters: Sequence[Parameter]) -> Iterator[None]:
    """Within the context, disable gradients of these parameters, so that backward passes skip them."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_()
