"""SEAL: a selector learned beside a model that trains on refusals ranks the user's examples; the lowest are dropped.

Han Shen, Pin-Yu Chen, Payel Das, Tianyi Chen: "SEAL: Safety-enhanced Aligned LLM Fine-tuning via Bilevel Data
Selection", ICLR 2025 (arXiv 2410.07471).

The selection is a training of its own, from the aligned model, for ``epochs`` passes over the user's N examples. With a
logit for each of them, ``p = N * softmax(logits)``, ``l_i`` the mean loss over the tokens of example i, ``f`` that of
the refusals of a batch (each averaged over its own tokens) and ``c`` the weight of the safety loss, ``safety_weight``
in the first epoch and ``safety_decay`` less in each further one:

1. the model takes a step on ``c * f + (1 - c) * mean of p_i * l_i`` over the batch, with ``p`` as constant;
2. AdamW takes a step on the logits, on ``mean of p_i * l_i`` with the losses as constants.

Then the model is restored, the ``keep`` share of the examples with the largest logits is kept (ties in their order),
and training is plain. With the published ``safety_weight`` of 1 the user's examples do not train the model at all in
the first epoch. The manifest of the fine-tuning has the counts by kind of example (``chosen``).

Cost: the selection's passes besides the training; a run that is killed in it starts it again, one that is killed later
does not.

Deviations from the authors' code: the selection has the optimizer, schedule and batch size of ``budget``; theirs has a
learning rate of 1e-5 and batches of 64. As in their code, the value function of the paper's penalty is absent, so the
logits only follow the losses under a model that trains on refusals.

Fidelity: hand-computed only. Equations and defaults are those of the authors' code and scripts (commit 1538e62); the
steps of logits and model and the examples kept are computed by hand in the tests, no vectors of the authors' trainer
were available.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar, final

from harness.corpora.examples import Role
from harness.engine.checks import counts, not_negative, positive, shares
from harness.errors import Problem
from harness.mechanisms.row_losses import mean_row_loss, weighted_row_losses
from harness.mechanisms.row_weights import RowWeights
from harness.mechanisms.short_training import ShortTraining, restore
from harness.protocols import Chosen, DataRequirement
from harness.training.budget import Budget
from harness.training.plain import PlainStep

if TYPE_CHECKING:
    from harness.protocols import BatchProvider, GivenRows, Learner


@final
@dataclass(frozen=True, kw_only=True)
class SEAL:
    """Settings of SEAL.

    Attributes:
        keep: fraction of the examples that is kept, rounded up.
        epochs: passes of the selection over the user's examples.
        safety_weight: weight of the safety loss in the first epoch of the selection.
        safety_decay: by how much it falls with each epoch; it does not fall below 0.
        selector_learning_rate: learning rate of the logits.
        safety_rows: number of refusals available to the defender; None uses all of the corpus.
        budget: optimizer, schedule and batch size of the selection; as shipped, those of the fine-tuning.
    """

    name: ClassVar[str] = "seal"
    version: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 3
    works_on_shards: ClassVar[bool] = True

    keep: float = 0.8
    epochs: int = 3
    safety_weight: float = 1.0
    safety_decay: float = 0.03
    selector_learning_rate: float = 5e-3
    safety_rows: int | None = None
    budget: Budget = field(default_factory=Budget)

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """The defender's refusals."""
        return (DataRequirement(role=Role.REFUSAL, rows=self.safety_rows, batch_size=self.budget.batch_size),)

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return [
            *positive(self, "keep", "selector_learning_rate"),
            *shares(self, "keep", "safety_weight"),
            *counts(self, "epochs", "safety_rows"),
            *not_negative(self, "safety_decay"),
        ]

    def choose(self, learner: Learner, given: GivenRows, batches: BatchProvider) -> Chosen:
        """Train the selector; return the examples that it ranks highest."""
        start = [parameter.detach().clone() for parameter in learner.trainables]
        rows = len(given.own)
        weights = RowWeights(rows, self.selector_learning_rate, learner.trainables[0].device)
        training = ShortTraining(learner, self.budget, self.epochs * sum(1 for _ in given.epoch(0)))
        for number in range(self.epochs):
            safety = max(self.safety_weight - number * self.safety_decay, 0.0)
            for batch in given.epoch(number):
                _, safety_gradient = mean_row_loss(learner, batches.next(Role.REFUSAL))
                user = weighted_row_losses(learner, batch, weights.values)
                training.step(
                    [
                        safety * one + (1 - safety) * other
                        for one, other in zip(safety_gradient, user.gradient, strict=True)
                    ]
                )
                weights.update(user.losses, user.present)
        training.check("defense.finetune")
        restore(learner, start)
        logits: list[float] = weights.logits.tolist()
        kept = sorted(range(rows), key=lambda place: (-logits[place], place))[
            : math.ceil(Fraction(str(self.keep)) * rows)
        ]
        return Chosen([(place, given.own[place]) for place in sorted(kept)], {})

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> PlainStep:  # noqa: ARG002
        """Start a run."""
        return PlainStep(learner)
