"""Finetune (stage B): the user's fine-tuning on a mixture of benign and harmful examples."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, ClassVar, Literal, final

from harness.corpora.corpus import overlaps
from harness.corpora.encode import Encoding
from harness.corpora.examples import Example, Role
from harness.corpora.slices import Slice
from harness.engine.stage import Locate, Stage, StageContext
from harness.errors import Problem
from harness.models.adapter import Lora
from harness.models.trained_weights import TrainedWeights
from harness.protocols import Estimator, TrainMethod
from harness.stages.inputs import AlignedStage, MixtureStage
from harness.stages.round import Server
from harness.stages.train_adapter import Federation, adapter_seed, keep, trained_model
from harness.stages.tuning import Tuning
from harness.training.budget import Budget
from harness.training.rounds import Rounds

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor

    from harness.models.loading import ModelRef


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Finetune(Stage):
    """An adapter, or the model's own weights, trained on the user's mixture.

    Attributes:
        aligned: the model that the user fine-tunes.
        mixture: the user's training examples.
        method: the defense; null is plain supervised fine-tuning.
        refusal: refusals for methods that need them.
        harmful: the defender's harmful examples, for methods that need them.
        budget: hyperparameters of the training run.
        protocol: ``single`` continues the training of the aligned adapter or weights; ``double`` merges the aligned
            adapter into the base and trains a new one, or the weights.
            The merge is computed in float32 and stored in the base's dtype: with a bfloat16 base, rounding loses 12 to
            91 % of a small adapter, which the facts report as ``lost_in_merge``. The reference scripts of different
            methods use different protocols, which changes results.
        adapter: rank and target modules of the new adapter, or the weights that are trained; with ``single`` those of
            the alignment.
        encoding: prompt template and tokenization.
        seed: the root seed.
        update: estimates gradients from forward passes; null computes them.
        benign: harmless examples with helpful answers, for methods that need them.
        rounds: the rounds of a federation whose clients hold the mixture; null trains on all of it in one place.
        server: the server after the last round, if the rounds are stages of their own; null carries them out here.
    """

    name: ClassVar[str] = "finetune"
    version: ClassVar[int] = 1
    parallel: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    loads_base: ClassVar[bool] = True
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
    rounds: Rounds | None = None
    server: Server | None = field(default=None, repr=False)

    @property
    def tuning(self) -> Tuning:
        """What is trained, on what, and how."""
        return Tuning(**{item.name: getattr(self, item.name) for item in fields(Tuning)})

    def preflight(self) -> list[Problem]:
        """Check the sources of the method's examples, and whether the aligned adapter can be merged."""
        return self.tuning.preflight()

    def run(self, ctx: StageContext) -> None:
        """Train on the mixture; report the overlap between the attacker's and the defender's examples.

        Without any row, as after a guardrail that removes all, nothing is trained, not even on a method's own examples:
        the model is the aligned one, which a note states.
        """
        tuning = self.tuning
        rows = self.mixture.mixture(ctx.input)
        defender = [*self.aligned.defender_examples(), *tuning.method_examples()]
        attacker = [example for example, role in rows if role is Role.ATTACK]
        ctx.facts["attack_and_defense_share"] = overlaps(attacker, defender)._asdict()
        if not rows or tuning.unchanged:
            reason = "nothing is trained" if rows else "no row was left to train on"
            ctx.facts["notes"] = [f"{reason}: the model is the aligned one"]
            keep(ctx, weights=tuning.start(ctx.input), trainable=tuning.trainable, seed=tuning.own_seed)
        elif self.server is not None:
            self.server.hand_over(ctx)
        else:
            tuning.fit(ctx, federation=Federation(tuning.shards(ctx.input), self.rounds) if self.rounds else None)

    def start(self, model: PeftModel, locate: Locate) -> dict[str, Tensor]:
        """Return the initial values of the trainable parameters, on the CPU, by parameter name.

        Args:
            model: any model with an adapter of this stage's shape, for example the fine-tuned one.
            locate: maps stages to their artifacts.
        """
        from harness.models import adapter
        from harness.models.loading import weights_of

        if isinstance(self.adapter, TrainedWeights):
            return {name: value.float() for name, value in weights_of(self.tuning.start(locate)).items()}
        if self.protocol == "double":
            return adapter.fresh(model, seed=adapter_seed(self.tuning.own_seed))
        aligned = self.aligned.weights(locate).adapter
        assert aligned is not None, "an aligned model has an adapter"
        return adapter.read(aligned)[1]

    def recorded_settings(self) -> dict[str, str]:
        """Report budget, protocol and estimator; with ``double`` also the new adapter, or the weights, trained."""
        settings = {"finetune.budget": "budget", "finetune.adapter": "protocol"}
        if self.update is not None:
            settings["finetune.update"] = "update"
        fresh = {"finetune.fresh": "adapter"} if self.protocol == "double" else {}
        federation = ("per_round", "rounds", "local_steps", "average", "optimizer") if self.rounds else ()
        return settings | fresh | {f"federation.{name}": f"rounds.{name}" for name in federation}

    def examples_seen(self, locate: Locate) -> list[Example]:
        """Return the mixture and the method's examples; none if nothing was trained."""
        rows = [example for example, _ in self.mixture.mixture(locate)]
        trained = rows and not self.tuning.unchanged
        return [*rows, *self.tuning.method_examples()] if trained else []

    def weights(self, locate: Locate) -> ModelRef:
        """Return the aligned model with the user's adapter, in place of the aligned one or on top, or their weights."""
        return trained_model(self.tuning.start(locate), self.adapter, locate(self))
