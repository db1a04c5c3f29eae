"""Refusal SFT: after fine-tuning, plain supervised fine-tuning on refusals, with the rows and budget of SafeInstruct.

A trivial baseline for repairs: what does it take to teach the refusals again? Compare it with SafeInstruct
(``harness.defenses.safe_instruct``), which has the same refusals during fine-tuning instead of after it, and with any
repair that is given safety data.

AdamW on the cross-entropy of the refusals, as in a stage of training, with the batch size, schedule and clipping of
``budget``. The model sees ``epochs * safety_rows`` refusals, as with SafeInstruct, rounded up to whole batches; these
are drawn like the auxiliary batches of other methods. The adapter's dropout is off.

Fidelity: a baseline of the harness, so there is nothing to be faithful to; the updates are computed by hand in the
tests, and compared with those of the training loop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, final

from harness.corpora.examples import Role
from harness.engine.checks import counts
from harness.errors import Problem
from harness.mechanisms.short_training import train_briefly
from harness.protocols import DataRequirement
from harness.training.budget import Budget

if TYPE_CHECKING:
    from harness.protocols import BatchProvider, Gradient, Learner


@final
@dataclass(frozen=True, kw_only=True)
class RefusalSFT:
    """Settings of the baseline.

    Attributes:
        safety_rows: number of refusals.
        budget: hyperparameters of the training; as shipped, those of the fine-tuning. Its precision is that of the
            fine-tuning in any case, but without TF32.
    """

    name: ClassVar[str] = "refusal_sft"
    version: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 5

    safety_rows: int = 100
    budget: Budget = field(default_factory=Budget)

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """The refusals."""
        return (DataRequirement(role=Role.REFUSAL, rows=self.safety_rows, batch_size=self.budget.batch_size),)

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return counts(self, "safety_rows")

    def repair(
        self,
        learner: Learner,
        *,
        start: Gradient,  # noqa: ARG002
        method_outputs: Mapping[str, Gradient],  # noqa: ARG002
        batches: BatchProvider,
    ) -> dict[str, object]:
        """Train on the refusals.

        Raises:
            ModelError: the loss is not finite.
        """
        budget = self.budget
        steps = math.ceil(budget.epochs * self.safety_rows / budget.batch_size)
        return train_briefly(learner, budget, steps, "refusals", lambda: learner.gradient(batches.next(Role.REFUSAL)))
