"""Base: the base model and its tokenizer, created, converted or referenced once."""

from dataclasses import dataclass
from typing import ClassVar, final

from harness.engine.stage import Locate, Stage, StageContext
from harness.errors import Problem
from harness.models.loading import ModelRef
from harness.protocols import ModelSource


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Base(Stage):
    """The model before any alignment."""

    name: ClassVar[str] = "base"
    version: ClassVar[int] = 1
    source: ModelSource

    def preflight(self) -> list[Problem]:
        """Check the source."""
        return self.source.preflight()

    def run(self, ctx: StageContext) -> None:
        """Write the model to the artifact."""
        ctx.facts.update(self.source.write(ctx.out))

    def weights(self, locate: Locate) -> ModelRef:
        """Return the base without an adapter."""
        return ModelRef(base_key=self.key, base=locate(self), merged=(), adapter=None)
