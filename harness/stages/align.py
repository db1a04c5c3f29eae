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
from harness.models.trained_weights import TrainedWeights
from harness.protocols import TrainMethod
from harness.stages.base import Base
from harness.stages.tally import REFUSAL
from harness.stages.train_adapter import fit, keep, trained_model
from harness.training.budget import Budget

if TYPE_CHECKING:
    from harness.models.loading import ModelRef


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Align(Stage):
    """An adapter, or the base's own weights, trained on refusals.

    Attributes:
        base: the base model.
        method: the defense; null is plain supervised fine-tuning.
        refusal: the training examples.
        harmful: the defender's harmful examples, for methods that need them.
        budget: hyperparameters of the training run.
        adapter: rank and target modules of the adapter, or the weights that are trained instead.
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
    adapter: Lora | TrainedWeights
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
        """Train a fresh adapter on the base, or its weights."""
        seed = derive(self.seed, self.name)
        if isinstance(self.adapter, TrainedWeights) and self.adapter.nothing:
            keep(ctx, weights=self.base.weights(ctx.input), trainable=self.adapter, seed=seed)
            return
        rows = self.refusal.examples()
        fit(
            ctx,
            weights=self.base.weights(ctx.input),
            trainable=self.adapter,
            method=self.method,
            rows=rows,
            kinds=[REFUSAL] * len(rows),
            slices={Role.HARMFUL: self.harmful, Role.BENIGN: self.benign},
            budget=self.budget,
            encoding=self.encoding,
            seed=seed,
        )

    def recorded_settings(self) -> dict[str, str]:
        """Report the budget, the number of refusals and the adapter."""
        return {"align.budget": "budget", "align.rows": "refusal.rows", "align.adapter": "adapter"}

    def examples_seen(self, locate: Locate) -> list[Example]:  # noqa: ARG002
        """Return the refusals and the method's harmful and harmless examples; none if nothing is trained."""
        return self.defender_examples()

    def defender_examples(self) -> list[Example]:
        """Return the refusals and the method's harmful and harmless examples; none if nothing is trained."""
        if isinstance(self.adapter, TrainedWeights) and self.adapter.nothing:
            return []
        return examples_of(self.refusal, self.harmful, self.benign)

    def weights(self, locate: Locate) -> ModelRef:
        """Return the base with the aligned adapter, or with the aligned weights."""
        return trained_model(self.base.weights(locate), self.adapter, locate(self))
