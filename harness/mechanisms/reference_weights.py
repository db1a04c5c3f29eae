"""Reference weights: the trainables as they were at one moment, to be pulled towards or to be visited again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from harness.protocols import Gradient, Learner


@final
class ReferenceWeights:
    """A copy of the trainables; costs as much memory as they do, whatever the size of the model under them."""

    def __init__(self, learner: Learner) -> None:
        """Drop the anchor at the present weights."""
        self._learner = learner
        self.move()

    def move(self) -> None:
        """Drop the anchor at the present weights instead."""
        self._values = [weight.detach().clone() for weight in self._learner.trainables]

    def offset(self) -> Gradient:
        """Return how far each trainable is from the anchor: half the gradient of the squared distance."""
        return [weight.detach() - value for weight, value in zip(self._learner.trainables, self._values, strict=True)]

    @contextmanager
    def at_reference(self) -> Iterator[None]:
        """Put the model back to the anchor, without gradients and without dropout, while the context lasts.

        This is the aligned model whether its adapter is continued or was merged: a fresh adapter begins by adding
        nothing, so at its first values the model is the merged one.
        """
        import torch

        module = self._learner.module
        training = module.training
        with self._learner.with_weights(self._values), torch.no_grad():
            module.eval()
            try:
                yield
            finally:
                module.train(training)

    def state_dict(self) -> dict[str, Any]:
        """Return the copy."""
        return {"values": self._values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        pairs = zip(state["values"], self._learner.trainables, strict=True)
        self._values = [value.to(weight.device) for value, weight in pairs]
