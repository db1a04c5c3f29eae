"""VLGuard: the user's fine-tuning also trains on the defender's safety examples.

Yongshuo Zong, Ondrej Bohdal, Tingyang Yu, Yongxin Yang, Timothy Hospedales: "Safety Fine-Tuning at (Almost) No Cost: A
Baseline for Vision Large Language Models", ICML 2024 (arXiv 2402.02207), as a baseline of harmful fine-tuning for text.

Two forms, which weight a safety example differently. ``mix`` (Vaccine and Lisa repositories): the first ``safety_rows``
examples are mixed into the user's, and training is plain. ``joint`` (Booster repository): with ``g`` the loss on the
user's batch and ``f`` that on ``safety_batch_size`` safety examples, the gradient is that of ``g + lamb * f``; two
forward and backward passes per step.

Deviations from the authors' code: the safety examples are the corpus's refusals in both forms (Vaccine and Lisa use
examples labelled safe by BeaverTails).

Fidelity: plain training on more examples for ``mix``. For ``joint``, four steps of the authors' trainer agree to 1e-5
with its vectors (tests/training/test_golden.py).
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
        safety_rows: number of safety examples available to the defender; 10,000 in the authors' scripts of ``mix``,
            2,000 in those of ``joint``; None uses all of the corpus.
        safety_batch_size: safety examples per step; null in ``mix``, 4 in ``joint`` in the authors' code.
        lamb: weight of the safety loss; null in ``mix``, 0.1 in ``joint`` in the authors' scripts.
    """

    name: ClassVar[str] = "vlguard"
    version: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 1
    works_on_shards: ClassVar[bool] = True

    form: Literal["mix", "joint"] = "mix"
    safety_rows: int | None = None
    safety_batch_size: int | None = None
    lamb: float | None = None

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """The defender's safety examples."""
        return (DataRequirement(role=Role.REFUSAL, rows=self.safety_rows, batch_size=self.safety_batch_size),)

    @property
    def gradients_per_step(self) -> int:
        """One, and one more for the safety batch of ``joint``."""
        return 1 if self.form == "mix" else 2

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings, and settings that do not apply to the form."""
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
            Problem(
                name, f"is null; expected a number with the form `joint`, for example {published} (authors' scripts)"
            )
            for (name, value), published in zip(own, (4, 0.1), strict=True)
            if value is None
        ]
        return [*found, *counts(self, "safety_batch_size"), *not_negative(self, "lamb")]

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> TrainStep:  # noqa: ARG002
        """Start a run."""
        return PlainStep(learner) if self.lamb is None else JointStep(learner, batches, self.lamb)


@final
class JointStep:
    """One run of ``joint``. It has no state between steps."""

    def __init__(self, learner: Learner, batches: BatchProvider, lamb: float) -> None:
        """Store the parts."""
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
        """Return an empty dict: a step has no state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing: a step has no state."""
