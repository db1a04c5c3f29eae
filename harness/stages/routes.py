"""Routes: the share of each expert in a model with routed experts, by the source of the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from harness.corpora.encode import Encoding
from harness.engine.stage import Stage, StageContext
from harness.errors import Problem
from harness.protocols import ExampleSource
from harness.stages.inputs import ModelStage

ROWS = 100
"""Rows of each source that are measured, from the first on."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Routes(Stage):
    """A measurement without an artifact other than its facts.

    Facts: ``experts``, the keys of the experts; ``shares``, by expert, for rows of its source, the mean routing weight
    of every expert (before the choice of the largest), in the order of ``experts``: a row of 1, 0, 0 goes to the first.

    Attributes:
        model: a model with routed experts, before or after an attack.
        experts: the keys of the experts, in the order of the model.
        rows: the rows of each expert.
        encoding: prompt template and tokenization.
    """

    name: ClassVar[str] = "routes"
    version: ClassVar[int] = 1
    fuses: ClassVar[bool] = True
    fuses_siblings: ClassVar[bool] = True
    loads_base: ClassVar[bool] = True
    model: ModelStage
    experts: tuple[str, ...]
    rows: tuple[ExampleSource, ...]
    encoding: Encoding

    def preflight(self) -> list[Problem]:
        """Check the sources of the rows."""
        return [problem for source in self.rows for problem in source.preflight()]

    def run(self, ctx: StageContext) -> None:
        """Measure the shares."""
        import torch

        from harness.corpora.batches import collate
        from harness.mechanisms.routing import kept_logits, row_shares
        from harness.models.loading import loaded_model
        from harness.models.routed import blocks_of

        shares = {}
        with loaded_model(self.model.weights(ctx.input), ctx.memory, ctx.device) as loaded, torch.no_grad():
            routers = [block.router for block in blocks_of(loaded.model).values()]
            for expert, source in zip(self.experts, self.rows, strict=True):
                rows = self.encoding.encode_all(loaded.tokenizer, source.examples()[:ROWS]).rows
                total = torch.zeros(len(self.experts))
                for row in rows:
                    batch = collate([row], loaded.tokenizer.pad_token_id)
                    ids, mask = (batch[name].to(ctx.device) for name in ("input_ids", "attention_mask"))
                    with kept_logits(routers) as logits:
                        loaded.model(input_ids=ids, attention_mask=mask, use_cache=False)
                    total += row_shares(list(logits.values()), mask)[0].cpu()
                shares[expert] = (total / max(len(rows), 1)).tolist()
        ctx.facts.update(experts=list(self.experts), shares=shares)
