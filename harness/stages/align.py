"""Align (stage A): supervised fine-tuning of the base model on refusals, with or without a defense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from harness.corpora.encode import Encoding
from harness.corpora.examples import Example, Role
from harness.corpora.slices import Slice, examples_of
from harness.engine.seeding import derive
from harness.engine.stage import Locate, Stage, StageContext
from harness.errors import Problem
from harness.models.adapter import Lora
from harness.protocols import TrainMethod
from harness.stages.base import Base
from harness.stages.tally import REFUSAL
from harness.stages.train_adapter import ADAPTER, fit
from harness.training.budget import Budget

if TYPE_CHECKING:
    from harness.models.loading import ModelRef


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Align(Stage):
    """An adapter trained on refusals.

    Attributes:
        base: the base model.
        method: the defense; null is plain supervised fine-tuning.
        refusal: the training examples.
        harmful: the defender's harmful examples, for methods that need them.
        budget: hyperparameters of the training run.
        adapter: rank and target modules of the adapter.
        encoding: prompt template and tokenization.
        seed: the root seed.
        benign: harmless examples with helpful answers, for methods that need them.
    """

    name: ClassVar[str] = "align"
    version: ClassVar[int] = 1
    parallel: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    loads_base: ClassVar[bool] = True
    base: Base
    method: TrainMethod | None = None
    refusal: Slice
    harmful: Slice | None = None
    budget: Budget
    adapter: Lora
    encoding: Encoding
    seed: int
    benign: Slice | None = None

    def preflight(self) -> list[Problem]:
        """Check the sources of the examples."""
        paired = any(need.paired for need in (self.method.needs if self.method else ()))
        return [
            *self.refusal.preflight(),
            *(self.harmful.preflight(paired=paired) if self.harmful else ()),
            *(self.benign.preflight() if self.benign else ()),
        ]

    def run(self, ctx: StageContext) -> None:
        """Train a fresh adapter on the base."""
        rows = self.refusal.examples()
        fit(
            ctx,
            weights=self.base.weights(ctx.input),
            fresh=self.adapter,
            method=self.method,
            rows=rows,
            kinds=[REFUSAL] * len(rows),
            slices={Role.HARMFUL: self.harmful, Role.BENIGN: self.benign},
            budget=self.budget,
            encoding=self.encoding,
            seed=derive(self.seed, self.name),
        )

    def recorded_settings(self) -> dict[str, str]:
        """Report the budget, the number of refusals and the adapter."""
        return {"align.budget": "budget", "align.rows": "refusal.rows", "align.adapter": "adapter"}

    def examples_seen(self, locate: Locate) -> list[Example]:  # noqa: ARG002
        """Return the refusals and the method's harmful and harmless examples."""
        return self.defender_examples()

    def defender_examples(self) -> list[Example]:
        """Return the refusals and the method's harmful and harmless examples."""
        return examples_of(self.refusal, self.harmful, self.benign)

    def weights(self, locate: Locate) -> ModelRef:
        """Return the base with the aligned adapter."""
        from harness.models.loading import ModelRef

        return ModelRef(base_key=self.base.key, base=locate(self.base), adapter=locate(self) / ADAPTER)
