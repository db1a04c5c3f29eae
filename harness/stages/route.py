"""Route: several alignments of one base become routed experts, trained together with a router on the rows of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from harness.corpora.encode import Encoding
from harness.corpora.examples import Example
from harness.engine.seeding import derive, generator
from harness.engine.stage import Locate, Stage, StageContext
from harness.errors import Problem
from harness.mechanisms.routing import Routing, shuffled
from harness.models.adapter import Lora
from harness.protocols import ExampleSource
from harness.stages.base import Base
from harness.stages.inputs import AlignedStage
from harness.stages.train_adapter import ADAPTER, fit
from harness.training.budget import Budget

if TYPE_CHECKING:
    from pathlib import Path

    from peft import PeftModel

    from harness.models.loading import ModelRef

START = "start"
"""The folder, in the work folder, of the experts before the training."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Route(Stage):
    """Routed experts in the place of the feed-forward blocks, and an adapter on other layers, all trained together.

    The artifact has the experts and routers in ``routed/`` and the adapter in ``adapter/``; the experts' own artifacts
    are only read. ``fit`` says which facts there are; rows are counted by the key of their expert.

    Attributes:
        experts: the alignments, sorted by key: the order in which they are listed is not part of the identity.
        rows: the rows of each expert, in the same order.
        top_k: experts that a token is given to.
        method: the loss.
        shuffled_labels: whether the gating loss sends rows to experts at random, its control.
        budget: hyperparameters of the training run.
        adapter: rank and target modules of the adapter.
        encoding: prompt template and tokenization.
        seed: the root seed.
    """

    name: ClassVar[str] = "route"
    version: ClassVar[int] = 1
    trains: ClassVar[bool] = True
    loads_base: ClassVar[bool] = True
    experts: tuple[AlignedStage, ...]
    rows: tuple[ExampleSource, ...]
    top_k: int
    method: Routing
    shuffled_labels: bool
    budget: Budget
    adapter: Lora
    encoding: Encoding
    seed: int

    @property
    def base(self) -> Base:
        """The base model, the same of all experts."""
        return self.experts[0].base

    def preflight(self) -> list[Problem]:
        """Check the sources of the rows."""
        return [problem for source in self.rows for problem in source.preflight()]

    def run(self, ctx: StageContext) -> None:
        """Train the experts, their router and a fresh adapter.

        Raises:
            ModelError: the experts' adapters are not on the matrices of feed-forward blocks, or not of one shape.
        """
        from harness.models import routed
        from harness.models.loading import ModelRef

        seed = derive(self.seed, self.name)
        start = ctx.work / START
        routed.start(
            [_adapter_of(expert, ctx.input) for expert in self.experts],
            top_k=self.top_k,
            seed=derive(seed, "router"),
            out=start,
        )
        rows = [source.examples() for source in self.rows]
        sources = [index for index, own in enumerate(rows) for _ in own]
        if self.shuffled_labels:
            sources = shuffled(sources, generator(seed, "labels"))

        def unfreeze(model: PeftModel) -> None:
            for block in routed.blocks_of(model).values():
                for name, parameter in block.own().items():
                    parameter.requires_grad_(name != "router" or self.method.router == "trained")

        fit(
            ctx,
            weights=ModelRef(base_key=self.base.key, base=ctx.input(self.base), routed=start),
            trainable=self.adapter,
            method=self.method,
            rows=[example for own in rows for example in own],
            kinds=[expert.key for expert, own in zip(self.experts, rows, strict=True) for _ in own],
            slices={},
            budget=self.budget,
            encoding=self.encoding,
            seed=seed,
            sources=sources,
            unfreeze=unfreeze,
            write=lambda model: routed.save(model, ctx.out / routed.FOLDER),
        )

    def recorded_settings(self) -> dict[str, str]:
        """Report no setting of the protocol: fusions are compared, and distinguished by their specs."""
        return {}

    def examples_seen(self, locate: Locate) -> list[Example]:  # noqa: ARG002
        """Return the rows of all experts."""
        return [example for source in self.rows for example in source.examples()]

    def defender_examples(self) -> list[Example]:
        """Return the examples of all experts and the rows."""
        own = [example for source in self.rows for example in source.examples()]
        return [*own, *(example for expert in self.experts for example in expert.defender_examples())]

    def weights(self, locate: Locate) -> ModelRef:
        """Return the base with the routed experts and the adapter."""
        from harness.models.loading import ModelRef
        from harness.models.routed import FOLDER

        folder = locate(self)
        return ModelRef(
            base_key=self.base.key, base=locate(self.base), adapter=folder / ADAPTER, routed=folder / FOLDER
        )


def _adapter_of(expert: AlignedStage, locate: Locate) -> Path:
    folder = expert.weights(locate).adapter
    assert folder is not None, "an aligned model has an adapter"
    return folder
