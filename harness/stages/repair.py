"""Repair (stage C): a method changes the weights after fine-tuning, without knowing what the user trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from harness.corpora.corpus import overlaps
from harness.corpora.encode import Encoding
from harness.corpora.examples import Example, Role
from harness.corpora.slices import Slice, drawn_from
from harness.engine.seeding import derive
from harness.engine.stage import Locate, Stage, StageContext
from harness.errors import ModelError, Problem
from harness.protocols import RepairMethod
from harness.stages import method_outputs
from harness.stages.finetune import Finetune
from harness.stages.train_adapter import ADAPTER, pools, tell_pieces

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models.loading import ModelRef
    from harness.protocols import Gradient, Learner


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Repair(Stage):
    """The fine-tuned adapter, repaired.

    Facts: what the method reports; ``change``, see ``changes``; where the attacker's rows meet the method's; how many
    rows went through the model at once, if batches were cut.

    Attributes:
        tuned: the model to repair.
        method: how.
        refusal: refusals that the method draws, if it needs them.
        harmful: the defender's harmful rows that the method draws, if it needs them.
        encoding: how text becomes tokens.
        seed: the root seed.
    """

    name: ClassVar[str] = "repair"
    version: ClassVar[int] = 1
    trains: ClassVar[bool] = True
    fuses: ClassVar[bool] = True
    loads_base: ClassVar[bool] = True
    tuned: Finetune
    method: RepairMethod
    refusal: Slice | None = None
    harmful: Slice | None = None
    encoding: Encoding
    seed: int

    def preflight(self) -> list[Problem]:
        """Ask the sources of the rows that the method draws."""
        return [problem for part in (self.refusal, self.harmful) if part for problem in part.preflight()]

    def run(self, ctx: StageContext) -> None:
        """Let the method change the trainables and store them.

        Raises:
            ModelError: a weight is not finite afterwards.
        """
        from harness.corpora.batches import RoleBatches
        from harness.models import adapter
        from harness.models.loading import loaded_model
        from harness.training.learner import CausalLearner
        from harness.training.pieces import rows_at_once

        seed = derive(self.seed, self.name)
        self._report_overlaps(ctx)
        with loaded_model(self.tuned.weights(ctx.input), ctx.memory, ctx.device) as lent:
            slices = {Role.REFUSAL: self.refusal, Role.HARMFUL: self.harmful}
            drawn = pools(lent.tokenizer, self.method.needs, slices, self.encoding, ctx.facts)
            share = max((pool.batch_size for pool in drawn.values()), default=0)
            # A repair without data has nothing to cut.
            most = rows_at_once(share, ctx.micro_batch_size, ctx.shrink) if share else None
            tell_pieces(ctx, most)
            learner = CausalLearner(lent.model, precision=self.tuned.budget.precision, rows_at_once=most)
            names = [name for name, parameter in lent.model.named_parameters() if parameter.requires_grad]
            began = self.tuned.start(lent.model, ctx.input)
            start = [began[name].to(ctx.device) for name in names]
            outputs = method_outputs.read(ctx.input(self.tuned), lent.model, ctx.device)
            batches = RoleBatches(drawn, pad_id=lent.tokenizer.pad_token_id, seed=seed, device=ctx.device)
            before = [parameter.detach().clone() for parameter in learner.trainables]
            ctx.facts.update(self.method.repair(learner, start=start, outputs=outputs, batches=batches))
            ctx.facts["change"] = changes(learner, before, start)
            adapter.save(lent.model, ctx.out / ADAPTER)

    def examples_seen(self, locate: Locate) -> list[Example]:  # noqa: ARG002
        """What the method draws."""
        return drawn_from(self.refusal, self.harmful)

    def weights(self, locate: Locate) -> ModelRef:
        """The fine-tuned model with the repaired adapter."""
        from harness.models.loading import ModelRef

        tuned = self.tuned.weights(locate)
        return ModelRef(base_key=tuned.base_key, base=tuned.base, merged=tuned.merged, adapter=locate(self) / ADAPTER)

    def _report_overlaps(self, ctx: StageContext) -> None:
        rows = self.tuned.mixture.mixture(ctx.input)
        attacker = [example for example, role in rows if role is Role.ATTACK]
        own = [example for part in (self.refusal, self.harmful) if part for example in part.examples()]
        ctx.facts["attack_and_defense_share"] = overlaps(attacker, own)._asdict()


def changes(learner: Learner, before: Gradient, start: Gradient) -> dict[str, float]:
    """Return how far a repair went.

    ``norm`` is that of its change, ``share`` that of the entries that changed; for comparison, ``finetune_norm`` is the
    norm of what fine-tuning had changed.

    Args:
        learner: the repaired model.
        before: its trainables before the repair.
        start: its trainables before fine-tuning.

    Raises:
        ModelError: a weight is not finite.
    """
    import torch

    after: list[Tensor] = [parameter.detach() for parameter in learner.trainables]
    if not all(bool(torch.isfinite(value).all()) for value in after):
        raise ModelError("the repair left weights that are not finite; expected finite ones. Lower its strength")
    changed = sum(int((new != old).sum()) for new, old in zip(after, before, strict=True))
    return {
        "norm": float(learner.norm([new - old for new, old in zip(after, before, strict=True)])),
        "share": changed / sum(value.numel() for value in after),
        "finetune_norm": float(learner.norm([old - first for old, first in zip(before, start, strict=True)])),
    }
