"""Reference weights: a copy of the trainable parameters, for proximal terms and for forward passes at that point."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from harness.protocols import Gradient, Learner


@final
class ReferenceWeights:
    """A copy of the trainable parameters; needs the memory of these parameters, not of the whole model."""

    def __init__(self, learner: Learner) -> None:
        """Copy the current parameters."""
        self._learner = learner
        self.update()

    def update(self) -> None:
        """Replace the copy by the current parameters."""
        self._values = [weight.detach().clone() for weight in self._learner.trainables]

    def offset(self) -> Gradient:
        """Return the parameters minus the reference: half the gradient of the squared distance."""
        return [weight.detach() - value for weight, value in zip(self._learner.trainables, self._values, strict=True)]

    @contextmanager
    def at_reference(self) -> Iterator[None]:
        """Within the context, run the model at the reference weights, without gradients and in eval mode.

        At the initial weights this is the aligned model under both adapter protocols: a new adapter is initialized to
        contribute zero, so with it the model equals the merged one.
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
