"""Fuse: several alignments of one base become one adapter, which is attacked like any other alignment."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, ClassVar, final

from harness.corpora.examples import Example
from harness.engine.stage import Locate, Stage, StageContext
from harness.errors import ModelError, Problem
from harness.models.adapter import Lora
from harness.protocols import Fusion, Product
from harness.stages.base import Base
from harness.stages.inputs import AlignedStage
from harness.stages.train_adapter import ADAPTER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.models.loading import ModelRef


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Fuse(Stage):
    """The fusion of several adapters of one base, as one adapter; the experts' artifacts are only read.

    Facts: those of the method; ``norms``, the Frobenius norm over all matrices of the change by each expert, by its
    key, and by the ``fused`` adapter; ``cosines`` of the changes of each two experts, by ``KEY KEY``.

    Attributes:
        experts: the alignments, sorted by key: the order in which they are listed is not part of the identity.
        method: fuses them.
    """

    name: ClassVar[str] = "fuse"
    version: ClassVar[int] = 1
    trains: ClassVar[bool] = True
    experts: tuple[AlignedStage, ...]
    method: Fusion

    @property
    def base(self) -> Base:
        """The base model, the same of all experts."""
        return self.experts[0].base

    @property
    def adapter(self) -> Lora:
        """The settings of the experts' adapters; the fused one has another rank."""
        adapter = self.experts[0].adapter
        assert isinstance(adapter, Lora), "a fusion of anything else is refused when it is composed"
        return adapter

    def preflight(self) -> list[Problem]:
        """Return no problems: the experts check their sources."""
        return []

    def run(self, ctx: StageContext) -> None:
        """Fuse the adapters.

        Raises:
            ModelError: the experts do not adapt the same layers, or not with plain LoRA.
        """
        from harness.models import adapter

        folders = {expert.key: expert.weights(ctx.input).adapter for expert in self.experts}
        changes: dict[str, dict[str, Product]] = {}
        for key, folder in folders.items():
            assert folder is not None, "an aligned model has an adapter"
            found = adapter.products(folder)
            changes[key] = {
                layer: Product(b.to(ctx.device), a.to(ctx.device)) for layer, (b, a) in sorted(found.items())
            }
        first = next(iter(changes.values()))
        if any(other.keys() != first.keys() for other in changes.values()):
            raise ModelError(
                "the experts do not adapt the same layers, so they cannot be fused; expected equal targets. Train them "
                "with one setting of `align.adapter.targets`"
            )
        fused = self.method.fuse(list(changes.values()))
        ctx.facts.update(fused.facts)
        ctx.facts.update(comparison(changes, fused.products))
        adapter.save_products(self.adapter, fused.products, ctx.out / ADAPTER)

    def recorded_settings(self) -> dict[str, str]:
        """Report no setting of the protocol: fusions are compared, and distinguished by their specs."""
        return {}

    def defender_examples(self) -> list[Example]:
        """Return the examples of all experts."""
        return [example for expert in self.experts for example in expert.defender_examples()]

    def weights(self, locate: Locate) -> ModelRef:
        """Return the base with the fused adapter."""
        return replace(self.experts[0].weights(locate), adapter=locate(self) / ADAPTER)


def comparison(experts: Mapping[str, Mapping[str, Product]], fused: Mapping[str, Product]) -> dict[str, object]:
    """Return the norms and cosines of changes, over all matrices; see ``Fuse``.

    Args:
        experts: the change by each expert, by its key.
        fused: the change by the fused adapter.
    """
    from harness.mechanisms.weight_change import inner, norm

    def whole(change: Mapping[str, Product]) -> float:
        return float(sum(norm(part) ** 2 for part in change.values()) ** 0.5)

    norms = {key: whole(change) for key, change in experts.items()}
    cosines = {}
    for one, other in combinations(experts, 2):
        product = sum(inner(experts[one][layer], experts[other][layer]) for layer in experts[one])
        scale = norms[one] * norms[other]
        cosines[f"{one} {other}"] = product / scale if scale else 0.0
    return {"norms": {**norms, "fused": whole(fused)}, "cosines": cosines}
