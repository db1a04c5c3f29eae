"""The plain training step: supervised fine-tuning without a method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from harness.protocols import Batch, Learner, Metrics


@final
class PlainStep:
    """Gradient of the loss on the stage's own batch; used where a slot holds no method."""

    def __init__(self, learner: Learner) -> None:
        """Store the learner."""
        self._learner = learner

    def backward(self, batch: Batch) -> Metrics:
        """Write the gradient of the loss and return the loss."""
        loss, gradient = self._learner.gradient(batch)
        self._learner.set_gradient(gradient)
        return {"loss": loss}

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict: a plain step has no state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing: a plain step has no state."""
