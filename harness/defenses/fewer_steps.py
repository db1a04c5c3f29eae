"""Fewer steps: fine-tuning that ends after a share of its steps.

A trivial baseline for every defense that costs some of the user's accuracy: does it beat training less? Sweep ``share``
(``defense.finetune.share=0.1,0.25,0.5,0.75``) and compare the harmful scores where the accuracies are equal; the front
of harm and utility in the report has the curve.

The first ``share`` of the optimizer steps, rounded up, are those of plain training, on the same examples with the same
learning rates; in the others the optimizer neither updates nor decays any parameter. They still take a forward pass,
for the loss that is reported.

Fidelity: a baseline of the harness; the weights are those of a plain run at that step, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.engine.checks import shares
from harness.errors import Problem

if TYPE_CHECKING:
    from harness.protocols import Batch, BatchProvider, DataRequirement, Learner, Metrics


@final
@dataclass(frozen=True, kw_only=True)
class FewerSteps:
    """Settings of the baseline.

    Attributes:
        share: fraction of the optimizer steps that train; 1 is plain training.
    """

    name: ClassVar[str] = "fewer_steps"
    version: ClassVar[int] = 2
    weight_copies: ClassVar[int] = 0
    works_on_shards: ClassVar[bool] = True
    gradients_per_step: ClassVar[int] = 1

    share: float = 0.5

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Only the stage's own examples."""
        return ()

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return shares(self, "share")

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> FewerStepsStep:  # noqa: ARG002
        """Start a run."""
        return FewerStepsStep(learner, ceil(Fraction(str(self.share)) * total_steps))


@final
class FewerStepsStep:
    """One run of the baseline. It has no state between steps besides their number."""

    def __init__(self, learner: Learner, trained_steps: int) -> None:
        """Store the parts."""
        self._learner = learner
        self._trained_steps = trained_steps

    def backward(self, batch: Batch) -> Metrics:
        """Write the gradient of the loss, or none after the last step that trains; report the loss."""
        if self._learner.steps_taken < self._trained_steps:
            loss, gradient = self._learner.gradient(batch)
            self._learner.set_gradient(gradient)
            return {"loss": loss, "training": 1.0}
        self._learner.set_gradient([None] * len(self._learner.trainables))
        return {"loss": self._learner.value(batch), "training": 0.0}

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict: whether a step trains follows from its number."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing: whether a step trains follows from its number."""
