"""VLGuard: the defender's safety rows take part in the user's fine-tuning.

Yongshuo Zong, Ondrej Bohdal, Tingyang Yu, Yongxin Yang, Timothy Hospedales: "Safety Fine-Tuning at (Almost) No Cost: A
Baseline for Vision Large Language Models", ICML 2024 (arXiv 2402.02207), as a baseline of harmful fine-tuning for text.

Two forms, which weigh a safety row differently. ``mix`` (Vaccine and Lisa repositories): the first ``safety_rows`` rows
are mixed into the user's, and training is plain. ``joint`` (Booster repository): with ``g`` the loss on the user's
batch and ``f`` that on ``safety_batch_size`` safety rows, the optimizer is given the gradient of ``g + lamb * f``; two
forward and backward passes per step.

Deviations from the authors' code: the safety rows are the corpus's refusals in both forms (Vaccine and Lisa take rows
that BeaverTails calls safe).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from harness.corpora.examples import Role
from harness.engine.checks import counts, not_negative
from harness.errors import Problem
from harness.protocols import DataRequirement
from harness.training.gradients import add_scaled
from harness.training.plain import PlainStep

if TYPE_CHECKING:
    from harness.protocols import Batch, BatchProvider, Learner, Metrics, TrainStep


@final
@dataclass(frozen=True, kw_only=True)
class VLGuard:
    """Settings of VLGuard.

    Attributes:
        form: ``mix`` or ``joint``.
        safety_rows: rows of safety data in the defender's hands; 10,000 in the authors' scripts of ``mix``, 2,000 in
            those of ``joint``; None is all that the corpus offers.
        safety_batch_size: safety rows per step; null in ``mix``, 4 in ``joint`` in the authors' code.
        lamb: weight of the safety loss; null in ``mix``, 0.1 in ``joint`` in the authors' scripts.
    """

    name: ClassVar[str] = "vlguard"
    version: ClassVar[int] = 1

    form: Literal["mix", "joint"] = "mix"
    safety_rows: int | None = None
    safety_batch_size: int | None = None
    lamb: float | None = None

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """The defender's safety rows."""
        return (DataRequirement(role=Role.REFUSAL, rows=self.safety_rows, batch_size=self.safety_batch_size),)

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings, and those that the form does not have."""
        found = counts(self, "safety_rows")
        own = (("safety_batch_size", self.safety_batch_size), ("lamb", self.lamb))
        if self.form == "mix":
            found += [
                Problem(name, f"{value} has no effect with the form `mix`; expected null, or the form `joint`")
                for name, value in own
                if value is not None
            ]
            return found
        found += [
            Problem(name, f"the form `joint` needs a number; expected one as {published} in the authors' scripts")
            for (name, value), published in zip(own, (4, 0.1), strict=True)
            if value is None
        ]
        return [*found, *counts(self, "safety_batch_size"), *not_negative(self, "lamb")]

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> TrainStep:  # noqa: ARG002
        """Begin a run."""
        return PlainStep(learner) if self.lamb is None else JointStep(learner, batches, self.lamb)


@final
class JointStep:
    """One run of ``joint``. It remembers nothing between steps."""

    def __init__(self, learner: Learner, batches: BatchProvider, lamb: float) -> None:
        """Keep the parts."""
        self._learner = learner
        self._batches = batches
        self._lamb = lamb

    def backward(self, batch: Batch) -> Metrics:
        """Write the gradient of both losses; report the user's as ``loss``, and the safety loss."""
        loss, gradient = self._learner.gradient(batch)
        safety_loss, safety_gradient = self._learner.gradient(self._batches.next(Role.REFUSAL))
        add_scaled(gradient, safety_gradient, self._lamb)
        self._learner.set_gradient(gradient)
        return {"loss": loss, "safety_loss": safety_loss}

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore nothing."""
