"""Tamper: the weights of the aligned model are changed without any training, as an attacker with open weights can."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, final

from harness.corpora.encode import Encoding
from harness.corpora.slices import Slice
from harness.engine.stage import Locate, Stage, StageContext
from harness.errors import Problem
from harness.models.head import unmergeable
from harness.models.trained_weights import targets_of
from harness.protocols import ExampleSource, Tampering, Victim
from harness.stages.inputs import AlignedStage
from harness.stages.train_adapter import ADAPTER

if TYPE_CHECKING:
    from harness.models.loading import ModelRef


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Tamper(Stage):
    """The aligned model with a product of factors added to some of its matrices, stored as an adapter.

    Facts: ``matrices``, how many were changed; ``change``, the L2 norm of the change and its share of their norm.

    Attributes:
        aligned: the model that is changed.
        method: computes the change.
        harmful: the attacker's harmful examples.
        harmless: the user's benign examples.
        encoding: prompt template and tokenization.
    """

    name: ClassVar[str] = "tamper"
    version: ClassVar[int] = 1
    attacks: ClassVar[bool] = True
    loads_base: ClassVar[bool] = True
    aligned: AlignedStage
    method: Tampering
    harmful: Slice
    harmless: ExampleSource
    encoding: Encoding

    def preflight(self) -> list[Problem]:
        """Check the sources of the examples, and whether the aligned adapter can be merged."""
        merged = unmergeable(self.aligned.base.source, targets_of(self.aligned.adapter))
        return [*self.harmful.preflight(), *self.harmless.preflight(), *merged]

    def run(self, ctx: StageContext) -> None:
        """Compute the change and store it."""
        from harness.models import adapter
        from harness.models.loading import loaded_model

        with loaded_model(self.aligned.weights(ctx.input).merging(), ctx.memory, ctx.device) as loaded:
            model = loaded.model
            changed = self.method.tamper(
                Victim(model, loaded.tokenizer, self.encoding),
                self.harmful.examples(),
                self.harmless.examples(),
                device=ctx.device,
            )
            whole = sum(float(model.get_submodule(name).weight.float().square().sum()) for name in changed)
            norm = sum(float((out @ into).square().sum()) for out, into in changed.values())
            ctx.facts["matrices"] = len(changed)
            ctx.facts["change"] = {"norm": norm**0.5, "share": (norm / whole) ** 0.5}
            adapter.save(adapter.of_products(model, changed), ctx.out / ADAPTER)

    def weights(self, locate: Locate) -> ModelRef:
        """Return the aligned model, merged, with the change."""
        return replace(self.aligned.weights(locate).merging(), adapter=locate(self) / ADAPTER)
