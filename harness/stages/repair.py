"""Repair (stage C): a method changes the weights after fine-tuning, without access to the user's data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from harness.corpora.corpus import overlaps
from harness.corpora.encode import Encoding
from harness.corpora.examples import Example, Role
from harness.corpora.remaining import Remaining
from harness.corpora.slices import Slice, examples_of
from harness.engine.seeding import derive
from harness.engine.stage import Locate, Stage, StageContext
from harness.errors import ModelError, Problem
from harness.models.trained_weights import TrainedWeights
from harness.protocols import RepairMethod
from harness.stages import method_outputs
from harness.stages.finetune import Finetune
from harness.stages.train_adapter import (
    ADAPTER,
    alignment_for,
    keep,
    pools,
    record_micro_batch,
    store,
    trained_model,
)

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models.loading import ModelRef
    from harness.protocols import Gradient, Learner


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Repair(Stage):
    """The fine-tuned adapter, or weights, repaired.

    Facts: those of the method; ``change``, see ``changes``; ``attack_and_defense_share``, the overlap between the
    attacker's and the method's examples, those of safe and unsafe adapters included; ``micro_batch_size``, if batches
    were split.

    Attributes:
        tuned: the fine-tuned model.
        method: the repair method.
        refusal: refusals for methods that need them.
        harmful: the defender's harmful examples, for methods that need them.
        encoding: prompt template and tokenization.
        seed: the root seed.
        safe: the model with the safe adapter, for methods that need one.
        server: benign examples of the server, for methods that need them.
        unsafe: the model with the unsafe adapter, for methods that need one.
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
    safe: Finetune | None = None
    server: Remaining | None = None
    unsafe: Finetune | None = None

    def preflight(self) -> list[Problem]:
        """Check the sources of the method's examples."""
        parts = (self.refusal, self.harmful, self.server)
        return [problem for part in parts if part for problem in part.preflight()]

    def run(self, ctx: StageContext) -> None:
        """Apply the method to the trainable parameters and store them.

        Where nothing was fine-tuned there is nothing to repair: the model stays the aligned one, which a note states.

        Raises:
            ModelError: a weight is not finite afterwards.
        """
        from harness.corpora.batches import RoleBatches
        from harness.models import adapter
        from harness.models.loading import loaded_model
        from harness.models.trained_weights import unfreeze
        from harness.training.learner import CausalLearner
        from harness.training.pieces import rows_at_once

        seed = derive(self.seed, self.name)
        tuned = self.tuned.weights(ctx.input)
        rows = self.tuned.mixture.mixture(ctx.input)
        self._report_overlaps(rows, ctx)
        if not rows:
            ctx.facts["notes"] = ["no row was left to train on: nothing was repaired"]
            keep(ctx, weights=tuned, trainable=None, seed=seed)
            return
        trained = self.tuned.adapter
        whole = isinstance(trained, TrainedWeights)
        with loaded_model(tuned, ctx.memory, ctx.device, for_good=whole) as loaded:
            if isinstance(trained, TrainedWeights):
                unfreeze(loaded.model, trained)
            slices = {Role.REFUSAL: self.refusal, Role.HARMFUL: self.harmful, Role.SERVER: self.server}
            drawn = pools(loaded.tokenizer, self.method.needs, slices, self.encoding, ctx.facts)
            share = max((pool.batch_size for pool in drawn.values()), default=0)
            # A repair without data has no batches to split.
            micro_batch = rows_at_once(share, ctx.micro_batch_size, ctx.shrink) if share else None
            record_micro_batch(ctx, micro_batch)
            learner = CausalLearner(
                loaded.model,
                precision=self.tuned.budget.precision,
                rows_at_once=micro_batch,
                alignment=alignment_for(self.method, self.tuned.aligned.weights(ctx.input).adapter),
            )
            names = [name for name, parameter in loaded.model.named_parameters() if parameter.requires_grad]
            initial = self.tuned.start(loaded.model, ctx.input)
            start = [initial[name].to(ctx.device) for name in names]
            outputs = method_outputs.read(ctx.input(self.tuned), loaded.model, ctx.device)
            for kind, other in self._others.items():
                _, stored = adapter.read(ctx.input(other) / ADAPTER)
                outputs[kind] = [stored[name].to(ctx.device) for name in names]
            batches = RoleBatches(drawn, pad_id=loaded.tokenizer.pad_token_id, seed=seed)
            before = [parameter.detach().clone() for parameter in learner.trainables]
            ctx.facts.update(self.method.repair(learner, start=start, method_outputs=outputs, batches=batches))
            ctx.facts["change"] = changes(learner, names, before, start)
            store(ctx, loaded.model, tuned)

    def examples_seen(self, locate: Locate) -> list[Example]:
        """Return the method's examples; none if nothing was repaired."""
        return examples_of(self.refusal, self.harmful, self.server) if self.tuned.mixture.mixture(locate) else []

    def weights(self, locate: Locate) -> ModelRef:
        """Return the fine-tuned model with the repaired adapter or weights."""
        return trained_model(self.tuned.weights(locate), self.tuned.adapter, locate(self))

    @property
    def _others(self) -> dict[str, Finetune]:
        """The models with other adapters than the user's, by the name under which the method is given them."""
        given = {"safe": self.safe, "unsafe": self.unsafe}
        return {kind: tuned for kind, tuned in given.items() if tuned is not None}

    def _report_overlaps(self, rows: Sequence[tuple[Example, Role]], ctx: StageContext) -> None:
        attacker = [example for example, role in rows if role is Role.ATTACK]
        own = examples_of(self.refusal, self.harmful, self.server)
        for other in self._others.values():
            own += [example for example, _ in other.mixture.mixture(ctx.input)]
        ctx.facts["attack_and_defense_share"] = overlaps(attacker, own)._asdict()


def changes(learner: Learner, names: Sequence[str], before: Gradient, start: Gradient) -> dict[str, float]:
    """Return how much a repair changed the trainable parameters.

    ``norm`` is the L2 norm of the change, ``share`` the fraction of entries that changed, 0 to 1; for comparison,
    ``finetune_norm`` is the L2 norm of the change made by fine-tuning. Where the repair changed the adapter's ``rank``,
    the parameters before and after are no longer comparable: ``product_norm`` and ``finetune_product_norm`` are then
    the norms of the change of the adapted matrices.

    Args:
        learner: the repaired model.
        names: the names of its trainable parameters.
        before: these parameters before the repair.
        start: these parameters before fine-tuning.

    Raises:
        ModelError: a weight is not finite.
    """
    import torch

    from harness.mechanisms.weight_change import product_distance

    after: list[Tensor] = [learner.module.get_parameter(name).detach() for name in names]
    if not all(bool(torch.isfinite(value).all()) for value in after):
        raise ModelError(
            "weights are not finite after the repair; expected finite values. Lower the strength of the method"
        )
    if any(new.shape != old.shape for new, old in zip(after, before, strict=True)):
        first, second, last = (dict(zip(names, values, strict=True)) for values in (start, before, after))
        return {
            "rank": len(after[0]),
            "product_norm": product_distance(learner.module, last, second),
            "finetune_product_norm": product_distance(learner.module, second, first),
        }
    changed = sum(int((new != old).sum()) for new, old in zip(after, before, strict=True))
    return {
        "norm": float(learner.norm([new - old for new, old in zip(after, before, strict=True)])),
        "share": changed / sum(value.numel() for value in after),
        "finetune_norm": float(learner.norm([old - first for old, first in zip(before, start, strict=True)])),
    }
