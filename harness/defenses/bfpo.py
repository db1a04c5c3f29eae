"""BFPO: a preference loss whose margin depends on whether the two answers of a pair are safe.

Wenxuan Zhang, Philip H.S. Torr, Mohamed Elhoseiny, Adel Bibi: "Bi-Factorial Preference Optimization: Balancing
Safety-Helpfulness in Language Models", ICLR 2025 (arXiv 2408.15313).

For a pair of answers to one prompt, let ``D`` be an answer's log-probability, summed over its tokens, minus that under
the model before the training, and ``s`` 1 if it is safe and 0 otherwise; w is the preferred (more helpful) answer and l
the other. The loss is the mean over the pairs of ``(D_w - D_l - m / beta)^2`` with
``m = b3 * (b1 * s_w - s_l) - alpha`` and ``b3 = 1 / (b1 - 1)``. By default ``m`` is 0.5 where both answers are safe, 1
where only the preferred one is, -1 where only the other is (the order is reversed), and -0.5 where neither is.

Two kinds of pairs are at hand. A harmful prompt has a refusal, which is preferred and safe, and a harmful answer, which
is not: m is 1. A benign prompt has its answer, which is preferred, and, as the other one, a refusal of the alignment's
batch, which is safe too and helps nobody: m is 0.5. They stand for the authors' helpfulness data, a batch of which
(labelled safe) they add to every step.

Per step two forward passes without gradient and two with it, and two backward passes, on each kind of pairs; with
``sft_weight`` plain training's on the alignment's batch. The published loss is without it (0), for a model that was
trained on preferred answers before; the slot begins with any base.

Deviations from the authors' code: the harmless pairs, as above (theirs: UltraFeedback); the adapter's targets are
trained (theirs: the down projections, whole). Targets of 100 and 50 nats of log-probability make gradients that
clipping decides about: ``preference_gradient_norm`` shows them.

Fidelity: hand-computed only. The loss and its constants are those of the authors' code (wx-zhang/bfpo, trainer/bfpo.py,
and its recipe: beta 0.01); the harmless pairs and the alignment loss are the harness's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.corpora.encode import IGNORED, Encoded
from harness.corpora.examples import Role
from harness.engine.checks import counts, not_negative, positive
from harness.errors import Problem
from harness.mechanisms.reference_weights import ReferenceWeights
from harness.protocols import DataRequirement
from harness.training.gradients import add_scaled

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols import Batch, BatchProvider, Learner, Metrics


@final
@dataclass(frozen=True, kw_only=True)
class BFPO:
    """Settings of BFPO.

    Attributes:
        beta: by which margins are divided.
        b1: weight of the preferred answer's safety against that of the other, above 1.
        alpha: subtracted from every margin.
        sft_weight: weight of the loss of the alignment; 0 is the published loss.
        harmful_rows: number of harmful examples available to the defender; None uses all of the corpus.
        harmful_batch_size: harmful pairs per step.
        benign_rows: number of benign examples; None uses all.
        benign_batch_size: benign examples per step; of them as many are used as the alignment's batch has refusals.
    """

    name: ClassVar[str] = "bfpo"
    version: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 4
    works_on_shards: ClassVar[bool] = True
    compares_passes: ClassVar[bool] = True

    beta: float = 0.01
    b1: float = 3.0
    alpha: float = 0.5
    sft_weight: float = 1.0
    harmful_rows: int | None = None
    harmful_batch_size: int = 10
    benign_rows: int | None = None
    benign_batch_size: int = 10

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Harmful examples with the refusals of their prompts, and benign examples."""
        size = self.harmful_batch_size
        return (
            DataRequirement(role=Role.HARMFUL, rows=self.harmful_rows, batch_size=size, paired=True),
            DataRequirement(role=Role.BENIGN, rows=self.benign_rows, batch_size=self.benign_batch_size),
        )

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = [
            *positive(self, "beta"),
            *not_negative(self, "alpha", "sft_weight"),
            *counts(self, "harmful_rows", "harmful_batch_size", "benign_rows", "benign_batch_size"),
        ]
        if self.b1 <= 1:
            found.append(Problem("b1", f"{self.b1} is not above 1; expected a number above 1, for example 3"))
        return found

    def target(self, *, safe_preferred: bool, safe_other: bool) -> float:
        """Return the margin that a pair's log-probabilities are drawn to, ``m / beta``."""
        b3 = 1 / (self.b1 - 1)
        return (b3 * (self.b1 * safe_preferred - safe_other) - self.alpha) / self.beta

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> BFPOStep:  # noqa: ARG002
        """Start a run.

        Raises:
            ModelError: the model applies dropout.
        """
        from harness.training.gradients import refuse_dropout

        refuse_dropout(learner.module, self.name)
        return BFPOStep(self, learner, batches)


@final
class BFPOStep:
    """One run of BFPO; its state is the initial parameters."""

    def __init__(self, settings: BFPO, learner: Learner, batches: BatchProvider) -> None:
        """Copy the initial parameters."""
        self._settings = settings
        self._learner = learner
        self._batches = batches
        self._start = ReferenceWeights(learner)

    def backward(self, batch: Batch) -> Metrics:
        """Write the combined gradient; report the ``loss`` on the refusals, and of both kinds of pairs what moved.

        Without ``sft_weight`` the ``loss`` is the preference loss.
        """
        from harness.mechanisms.preference import preference_loss

        settings = self._settings
        pair = self._batches.pair(Role.HARMFUL)
        safe = settings.target(safe_preferred=True, safe_other=False)
        harmful = preference_loss(
            self._learner, self._start, pair.refusal, pair.harmful, partial(_squared, target=safe)
        )
        answered, refused = crossed(self._batches.next(Role.BENIGN), batch)
        both = settings.target(safe_preferred=True, safe_other=True)
        harmless = preference_loss(self._learner, self._start, answered, refused, partial(_squared, target=both))
        # The mean over all pairs, of both kinds.
        share = harmful.pairs / (harmful.pairs + harmless.pairs)
        gradient = [
            share * one + (1 - share) * other for one, other in zip(harmful.gradient, harmless.gradient, strict=True)
        ]
        found = share * harmful.loss + (1 - share) * harmless.loss
        norm, loss = self._learner.norm(gradient), found
        if settings.sft_weight:
            loss, own = self._learner.gradient(batch)
            add_scaled(gradient, own, settings.sft_weight)
        self._learner.set_gradient(gradient)
        return {
            "loss": loss,
            "preference_loss": found,
            "harmful_margin": harmful.rise + harmful.fall,
            "harmless_margin": harmless.rise + harmless.fall,
            "preference_gradient_norm": norm,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the initial parameters."""
        return {"start": self._start.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._start.load_state_dict(state["start"])


def crossed(prompts: Batch, answers: Batch) -> tuple[Batch, Batch]:
    """Return the first examples of a batch, and their prompts with the answers of another batch.

    There are as many as both batches have. Where the other has no answer (the filler of an empty share), neither
    result has one.

    Args:
        prompts: examples whose prompts are kept.
        answers: examples whose answers follow them.
    """
    from harness.corpora.batches import collate

    own, swapped = [], []
    for row in range(min(len(prompts["labels"]), len(answers["labels"]))):
        prompt, answer = _parts(prompts, row)
        _, other = _parts(answers, row)
        own.append(_encoded(prompt, answer if other else []))
        swapped.append(_encoded(prompt, other))
    return collate(own, 0), collate(swapped, 0)


def _encoded(prompt: list[int], answer: list[int]) -> Encoded:
    return Encoded([*prompt, *answer], [*[IGNORED] * len(prompt), *answer])


def _parts(batch: Batch, row: int) -> tuple[list[int], list[int]]:
    """Return the tokens of an example's prompt and of its answer."""
    ids = batch["input_ids"][row].tolist()[: int(batch["attention_mask"][row].sum())]
    supervised = (batch["labels"][row] != IGNORED).tolist()
    start = supervised.index(True) if True in supervised else len(ids)
    return ids[:start], ids[start:]


def _squared(margins: Tensor, target: float) -> Tensor:
    return (margins - target).square()
