"""Align (stage A): the base learns to refuse, with or without a defense in the slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from harness.corpora.encode import Encoding
from harness.corpora.examples import Example, Role
from harness.corpora.slices import Slice, drawn_from
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
        base: the model under the adapter.
        method: the defense; null is plain training.
        refusal: what the alignment is trained on.
        harmful: what the method draws, if it needs it.
        budget: how long and how fast.
        adapter: size and place of the adapter.
        encoding: how text becomes tokens.
        seed: the root seed.
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

    def preflight(self) -> list[Problem]:
        """Ask the sources of the rows."""
        paired = any(need.paired for need in (self.method.needs if self.method else ()))
        return [*self.refusal.preflight(), *(self.harmful.preflight(paired=paired) if self.harmful else ())]

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
            slices={Role.HARMFUL: self.harmful},
            budget=self.budget,
            encoding=self.encoding,
            seed=derive(self.seed, self.name),
        )

    def recorded_settings(self) -> dict[str, str]:
        """Budget, refusals and adapter."""
        return {"align.budget": "budget", "align.rows": "refusal.rows", "align.adapter": "adapter"}

    def examples_seen(self, locate: Locate) -> list[Example]:  # noqa: ARG002
        """The refusals, and what the method draws."""
        return drawn_from(self.refusal, self.harmful)

    def weights(self, locate: Locate) -> ModelRef:
        """The base with the aligned adapter on top."""
        from harness.models.loading import ModelRef

        return ModelRef(base_key=self.base.key, base=locate(self.base), adapter=locate(self) / ADAPTER)
