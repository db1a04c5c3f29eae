"""SafeInstruct: a fixed number of safety examples mixed into the user's fine-tuning.

Federico Bianchi et al.: "Safety-Tuned LLaMAs: Lessons From Improving the Safety of Large Language Models that Follow
Instructions", ICLR 2024 (arXiv 2309.07875), where 100 to 2,000 examples are added to 20,000.

Training is plain supervised fine-tuning. It is the control for methods that use safety data: it shows the effect of the
examples alone. The manifest of the fine-tuning has the actual counts under ``rows`` and ``refusal_rows``.

Fidelity: plain training on more examples, so there is no equation to be faithful to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from harness.corpora.examples import Role
from harness.engine.checks import counts
from harness.errors import Problem
from harness.protocols import DataRequirement
from harness.training.plain import PlainStep

if TYPE_CHECKING:
    from harness.protocols import BatchProvider, Learner


@final
@dataclass(frozen=True, kw_only=True)
class SafeInstruct:
    """Settings of SafeInstruct.

    Attributes:
        safety_rows: number of safety examples mixed in.
    """

    name: ClassVar[str] = "safe_instruct"
    version: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 0
    works_on_shards: ClassVar[bool] = True
    gradients_per_step: ClassVar[int] = 1

    safety_rows: int = 100

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """The defender's safety examples."""
        return (DataRequirement(role=Role.REFUSAL, rows=self.safety_rows, batch_size=None),)

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return counts(self, "safety_rows")

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> PlainStep:  # noqa: ARG002
        """Start a run."""
        return PlainStep(learner)
