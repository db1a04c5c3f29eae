"""TOSS: the answer tokens that a harmful model predicts best, compared with a useful one, are not trained on.

Yanping Li, Zhening Liu, Zijian Li, Zehong Lin, Jun Zhang: "Token-level Data Selection for Safe LLM Fine-tuning", ICLR
2026 (arXiv 2603.01185).

Two reference models are trained from the aligned one, by plain cross-entropy: ``w_h`` on the defender's harmful
examples, ``w_u`` on harmless ones. An answer token of the user's examples has the score

    loss at w_u - loss at w_h

and the ``share`` of all tokens with the highest scores, over the whole data, is not supervised. An example without a
supervised token left is dropped. Then the model is restored and training is plain; a masked token is still an input.
The manifest of the fine-tuning has the counts by kind of example (``chosen``): how many tokens of the poison were
masked, which is not yet safety.

Cost: the training of the references and two forward passes on all examples; a run that is killed in it starts it again.

Deviations from the authors' code: the references have the optimizer, schedule, batch size and epochs of ``budget`` (2
epochs at a learning rate of 1e-5 in theirs) and the adapter of the fine-tuning. Their utility reference is trained on
data of the user's task, which the defender is taken to have; here it is trained on the corpus's harmless examples, so
the score also tells a task from them. The variant TOSS-Pro, which refines the harmful reference, is not implemented.

Fidelity: hand-computed only. Score, share and the selection over the whole data are those of the authors' code (commit
31ef326); scores and masks are computed by hand in the tests. What their references were trained on is second-hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar, final

from harness.corpora.encode import IGNORED, Encoded
from harness.corpora.examples import Role
from harness.engine.checks import below_one, counts
from harness.errors import Problem
from harness.mechanisms.short_training import ShortTraining, restore
from harness.protocols import Chosen, DataRequirement
from harness.training.budget import Budget
from harness.training.plain import PlainStep

if TYPE_CHECKING:
    from harness.protocols import Batch, BatchProvider, GivenRows, Learner


@final
@dataclass(frozen=True, kw_only=True)
class TOSS:
    """Settings of TOSS.

    Attributes:
        share: fraction of all answer tokens that is not trained on, rounded down.
        harmful_rows: number of examples of the harmful reference; None uses all of the corpus.
        benign_rows: number of examples of the useful reference; None uses all of the corpus.
        budget: hyperparameters of both references; as shipped, those of the fine-tuning.
    """

    name: ClassVar[str] = "toss"
    version: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 1
    works_on_shards: ClassVar[bool] = True

    share: float = 0.2
    harmful_rows: int | None = None
    benign_rows: int | None = None
    budget: Budget = field(default_factory=Budget)

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """The examples of both references."""
        size = self.budget.batch_size
        return (
            DataRequirement(role=Role.HARMFUL, rows=self.harmful_rows, batch_size=size),
            DataRequirement(role=Role.BENIGN, rows=self.benign_rows, batch_size=size),
        )

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return [*below_one(self, "share"), *counts(self, "harmful_rows", "benign_rows")]

    def choose(self, learner: Learner, given: GivenRows, batches: BatchProvider) -> Chosen:
        """Train the references; return the examples without the tokens of the highest scores."""
        start = [parameter.detach().clone() for parameter in learner.trainables]
        found = []
        for role in (Role.BENIGN, Role.HARMFUL):
            steps = self.budget.steps(len(given.of(role)))
            training = ShortTraining(learner, self.budget, steps)
            for _ in range(steps):
                training.step(learner.gradient(batches.next(role))[1])
            training.check("defense.finetune")
            found.append([losses for batch in given.batches(given.own) for losses in token_losses(learner, batch)])
            restore(learner, start)
        scores = [
            (useful - harmful, place, token)
            for place, rows in enumerate(zip(*found, strict=True))
            for token, (useful, harmful) in enumerate(zip(*rows, strict=True))
        ]
        # Of equal scores the first token is masked.
        worst = sorted(scores, key=lambda each: (-each[0], *each[1:]))[
            : math.floor(Fraction(str(self.share)) * len(scores))
        ]
        masked: dict[int, set[int]] = {}
        for _, place, token in worst:
            masked.setdefault(place, set()).add(token)
        kept = [(place, without(row, masked.get(place, set()))) for place, row in enumerate(given.own)]
        rows = [(place, row) for place, row in kept if any(label != IGNORED for label in row.labels)]
        return Chosen(rows, {"lowest_masked_score": worst[-1][0]} if worst else {})

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> PlainStep:  # noqa: ARG002
        """Start a run."""
        return PlainStep(learner)


def token_losses(learner: Learner, batch: Batch) -> list[list[float]]:
    """Return the losses of the supervised tokens of each example, in eval mode."""
    import torch
    from torch.nn.functional import cross_entropy

    found: dict[int, list[float]] = {}
    module = learner.module
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            for piece in learner.pieces(batch):
                prediction = learner.predict(piece)
                losses = cross_entropy(prediction.logits.float(), prediction.targets, reduction="none").cpu()
                for row, part in zip(piece.rows, torch.split(losses, list(piece.counts)), strict=False):
                    found[row] = part.tolist()
    finally:
        module.train(training)
    return [found[row] for row in range(len(batch["labels"]))]


def without(row: Encoded, tokens: set[int]) -> Encoded:
    """Return an example without some of its supervised tokens, counted from 0."""
    supervised = [place for place, label in enumerate(row.labels) if label != IGNORED]
    left_out = {supervised[token] for token in tokens}
    return row._replace(labels=[IGNORED if place in left_out else label for place, label in enumerate(row.labels)])
