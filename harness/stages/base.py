"""Base: the base model and its tokenizer, created, converted or referenced once."""

from dataclasses import dataclass
from typing import ClassVar, Protocol, final

from harness.engine.stage import Locate, Stage, StageContext
from harness.models.loading import ModelRef
from harness.protocols import ModelSource


class ModelStage(Protocol):
    """A stage whose artifact, with those of its ancestors, is a model."""

    @property
    def key(self) -> str:
        """The stage's key."""
        ...

    def weights(self, locate: Locate) -> ModelRef:
        """Return the paths of the model's parts."""
        ...


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Base(Stage):
    """The model before any alignment."""

    name: ClassVar[str] = "base"
    version: ClassVar[int] = 1
    source: ModelSource

    def preflight(self) -> list[str]:
        """Check the source."""
        return self.source.preflight()

    def run(self, ctx: StageContext) -> None:
        """Write the model to the artifact."""
        ctx.facts.update(self.source.write(ctx.out))

    def weights(self, locate: Locate) -> ModelRef:
        """Return the base without an adapter."""
        return ModelRef(base_key=self.key, base=locate(self), merged=(), adapter=None)
