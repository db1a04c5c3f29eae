"""A fine-tuning as settings: what is trained, on what, and how; shared by the stages that carry out a federation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, final

from harness.corpora.encode import Encoding
from harness.corpora.examples import Example, Role
from harness.corpora.shards import Shards
from harness.corpora.slices import Slice, examples_of
from harness.engine.seeding import derive
from harness.engine.stage import Locate, StageContext
from harness.errors import Problem
from harness.models.adapter import Lora
from harness.models.head import unmergeable
from harness.models.trained_weights import TrainedWeights, targets_of
from harness.protocols import Estimator, TrainMethod
from harness.stages.inputs import AlignedStage, ClientStage, MixtureStage
from harness.stages.tally import BENIGN, HARMFUL, REFUSAL
from harness.stages.train_adapter import Federation, fit
from harness.training.budget import Budget

if TYPE_CHECKING:
    from harness.models.loading import ModelRef
    from harness.training.trainer import TrainReport

KINDS = {Role.ATTACK: HARMFUL, Role.HARMFUL: HARMFUL, Role.REFUSAL: REFUSAL}
"""How the rows of a mixture are counted; all others are the user's own."""
SEED = "finetune"
"""Name of the stream of random choices of a fine-tuning."""


@final
@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What a fine-tuning trains, on what, and how; the attributes are those of ``harness.stages.finetune.Finetune``."""

    name: ClassVar[str] = "tuning"
    version: ClassVar[int] = 1
    aligned: AlignedStage
    mixture: MixtureStage
    method: TrainMethod | None = None
    refusal: Slice | None = None
    harmful: Slice | None = None
    budget: Budget
    protocol: Literal["single", "double"]
    adapter: Lora | TrainedWeights | None = None
    encoding: Encoding
    seed: int
    update: Estimator | None = None
    benign: Slice | None = None

    def preflight(self) -> list[Problem]:
        """Check the sources of the method's examples, and whether the aligned adapter can be merged."""
        paired = any(need.paired for need in (self.method.needs if self.method else ()))
        problems = self.harmful.preflight(paired=paired) if self.harmful else []
        problems += [problem for part in (self.refusal, self.benign) if part for problem in part.preflight()]
        merged = targets_of(self.aligned.adapter) if self.protocol == "double" else ()
        return [*problems, *unmergeable(self.aligned.base.source, merged)]

    def fit(self, ctx: StageContext, *, federation: Federation | None = None) -> TrainReport:
        """Train on the mixture, see ``harness.stages.train_adapter.fit``."""
        rows = self.mixture.mixture(ctx.input)
        return fit(
            ctx,
            weights=self.start(ctx.input),
            trainable=self.trainable,
            method=self.method,
            rows=[example for example, _ in rows],
            kinds=[KINDS.get(role, BENIGN) for _, role in rows],
            slices={Role.REFUSAL: self.refusal, Role.HARMFUL: self.harmful, Role.BENIGN: self.benign},
            budget=self.budget,
            encoding=self.encoding,
            seed=self.own_seed,
            aligned=self.aligned.weights(ctx.input).adapter,
            update=self.update,
            federation=federation,
        )

    def shards(self, locate: Locate) -> Shards:
        """Return which client of a federation holds which row of the mixture."""
        assert isinstance(self.mixture, ClientStage), "the clients of a federation hold its mixture"
        return self.mixture.shards(locate)

    def method_examples(self) -> list[Example]:
        """Return the examples that the method may use."""
        return examples_of(self.refusal, self.harmful, self.benign)

    @property
    def own_seed(self) -> int:
        """The root of all random choices of the training."""
        return derive(self.seed, SEED)

    @property
    def unchanged(self) -> bool:
        """Whether there is nothing to train."""
        return isinstance(self.adapter, TrainedWeights) and self.adapter.nothing

    @property
    def trainable(self) -> Lora | TrainedWeights | None:
        """The new adapter or the weights that are trained; None if the training of the aligned adapter goes on."""
        return None if self.protocol == "single" and isinstance(self.adapter, Lora) else self.adapter

    def start(self, locate: Locate) -> ModelRef:
        """Return the model from which the training starts."""
        aligned = self.aligned.weights(locate)
        # Merging rounds: a model that nothing is done to is left as it is.
        return aligned.merging() if self.protocol == "double" and not self.unchanged else aligned
