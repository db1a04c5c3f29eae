"""The plain training step: the gradient of the loss on the stage's own batch, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from harness.protocols import Batch, Learner, Metrics


@final
class PlainStep:
    """Supervised fine-tuning; what runs where a slot holds no method."""

    def __init__(self, learner: Learner) -> None:
        """Keep the model."""
        self._learner = learner

    def backward(self, batch: Batch) -> Metrics:
        """Write the gradient of the loss and report the loss."""
        loss, gradient = self._learner.gradient(batch)
        self._learner.set_gradient(gradient)
        return {"loss": loss}

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: a plain step remembers nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore nothing."""
