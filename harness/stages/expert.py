"""Expert: supervised fine-tuning of the base model on the rows of one or several sources, to be fused with others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from harness.corpora.encode import Encoding
from harness.corpora.examples import Example
from harness.engine.seeding import derive
from harness.engine.stage import Locate, Stage, StageContext
from harness.errors import Problem
from harness.models.adapter import Lora
from harness.protocols import ExampleSource
from harness.stages.base import Base
from harness.stages.train_adapter import ADAPTER, fit
from harness.training.budget import Budget

if TYPE_CHECKING:
    from harness.models.loading import ModelRef

KIND = "expert"
"""Kind of the rows in the counts of the manifest."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Expert(Stage):
    """An adapter trained on example sources, as alignment is on refusals.

    Attributes:
        base: the base model.
        rows: the sources; with several the adapter is trained on their rows together.
        budget: hyperparameters of the training run.
        adapter: rank and target modules of the adapter.
        encoding: prompt template and tokenization.
        seed: the expert's seed.
    """

    name: ClassVar[str] = "expert"
    version: ClassVar[int] = 1
    parallel: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    loads_base: ClassVar[bool] = True
    base: Base
    rows: tuple[ExampleSource, ...]
    budget: Budget
    adapter: Lora
    encoding: Encoding
    seed: int

    def preflight(self) -> list[Problem]:
        """Check the sources."""
        return [problem for source in self.rows for problem in source.preflight()]

    def run(self, ctx: StageContext) -> None:
        """Train a fresh adapter on the base."""
        rows = self.defender_examples()
        fit(
            ctx,
            weights=self.base.weights(ctx.input),
            trainable=self.adapter,
            method=None,
            rows=rows,
            kinds=[KIND] * len(rows),
            slices={},
            budget=self.budget,
            encoding=self.encoding,
            seed=derive(self.seed, self.name),
        )

    def recorded_settings(self) -> dict[str, str]:
        """Report the budget and the adapter, as settings of the alignment."""
        return {"align.budget": "budget", "align.adapter": "adapter"}

    def examples_seen(self, locate: Locate) -> list[Example]:  # noqa: ARG002
        """Return the rows."""
        return self.defender_examples()

    def defender_examples(self) -> list[Example]:
        """Return the rows of all sources."""
        return [example for source in self.rows for example in source.examples()]

    def weights(self, locate: Locate) -> ModelRef:
        """Return the base with the expert's adapter."""
        from harness.models.loading import ModelRef

        return ModelRef(base_key=self.base.key, base=locate(self.base), adapter=locate(self) / ADAPTER)
