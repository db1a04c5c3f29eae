"""TAR: alignment that resists fine-tuning by a simulated adversary; first-order, for adapters.

Rishub Tamirisa, Bhrugu Bharathi, Long Phan, Andy Zhou, Alice Gatti, Tarun Suresh, Maxwell Lin, Justin Wang, Rowan Wang,
Ron Arel, Andy Zou, Dawn Song, Bo Li, Dan Hendrycks, Mantas Mazeika: "Tamper-Resistant Safeguards for Open-Weight LLMs",
ICLR 2025 (arXiv 2408.00761). The published method trains all parameters; here defender and adversary train the adapter
only.

The run has three parts. It begins with ordinary alignment, for ``alignment_share`` of the steps, because the published
method starts from a model that is aligned already; the weights after it are the reference. It ends with
``closing_steps`` of plain training on the retained data. In each step in between, from the current weights ``w``:

1. an adversary with a randomly chosen learning rate takes ``inner_steps`` AdamW steps ``v_1, v_2, ..`` on harmful
   batches;
2. after every ``evaluate_every``-th of them, the tamper-resistance loss ``T`` is computed at ``v_i`` on pairs that are
   held out from this adversary: the DPO loss with the refusal preferred over the harmful answer, against the reference;
3. ``G = sum_i exp(decay * (i - inner_steps)) * grad T(v_i)``, applied at ``w`` to first order, without the derivative
   of the adversary's trajectory;
4. the gradient passed to the optimizer is ``tamper_scale * G + retain_scale * grad (f + drift_scale * D)(w)``, with
   ``f`` the loss on the retained data and ``D`` the distance of their hidden states from those of the reference.

The pairs and the adversary's batches of a step share no example, so at least ``inner_steps + pair_batches`` batches of
examples are required; with fewer the run fails at the start. Examples are held out, not prompts: if a corpus repeats a
prompt, an adversary may train on it with another answer. Held-out examples may be given to a later adversary.

``inner_steps`` forward and backward passes of the adversary, two for each pair batch of each evaluation, one for the
retained data, and one forward pass for their reference and two for that of each pair batch.

Deviations from the authors' code, besides the adapter: the outer optimizer and its schedule are the stage's (theirs is
a schedule-free AdamW, 750 steps); the tamper-resistance loss is the one that they use for refusal, not the entropy of
their knowledge domains; the adversary trains on the defender's harmful examples only, without their second dataset and
without the adversary that switches from retained to harmful data; ``D`` compares the layers' outputs at real positions,
theirs the embeddings' too, and padding. How long to align first is ours, as is the data of the closing steps, of which
only the number was found. The published learning rates are those of full-parameter training and small for an adapter.
``retain: refusals``, ``alignment_share`` 0, ``closing_steps`` 0, ``weight_decay`` 0, ``harmful_batch_size`` 8 and
``pair_batches`` 1 are the harness's earlier port: it retains the stage's own examples against the weights before
alignment, so that ``D`` keeps the model close to its base on prompts that it should learn to refuse. In T-Vaccine's
port the tamper-resistance gradient never reaches a weight; it is not followed.

Fidelity: hand-computed only. The numbers are computed by hand in the tests; no vectors of the authors' trainer were
available.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, exp
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from harness.corpora.examples import Role
from harness.engine.checks import counts, not_negative, positive, shares
from harness.errors import ConfigError, Problem
from harness.protocols import DataRequirement
from harness.training.gradients import add_scaled

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols import Batch, BatchProvider, Gradient, Learner, Metrics


@final
@dataclass(frozen=True, kw_only=True)
class Tar:
    """Settings of TAR.

    Attributes:
        inner_steps: steps of the adversary per outer step, K in the paper.
        learning_rates: the adversary's learning rates, of which each outer step picks one at random.
        weight_decay: the adversary's decoupled weight decay.
        evaluate_every: steps of the adversary between two evaluations; must divide ``inner_steps``.
        decay: exponential decay of the weight of earlier evaluations, per step of the adversary.
        tamper_scale: weight of the tamper-resistance gradient.
        retain_scale: weight of the retention gradient.
        drift_scale: weight of the hidden-state drift in the retention loss.
        beta: temperature of the DPO loss.
        harmful_rows: number of harmful examples available to the defender, at least ``inner_steps + pair_batches``
            batches; None uses all of the corpus.
        harmful_batch_size: harmful examples per step of the adversary, over all processes.
        pair_batches: number of batches of that size, of pairs, in an evaluation.
        retain: data of the retention term and of the closing steps: ``benign`` examples, or the stage's ``refusals``.
        benign_rows: number of benign examples; None uses all of the corpus.
        benign_batch_size: benign examples per step, over all processes.
        alignment_share: fraction of the steps that are ordinary alignment. With 0 the reference are the weights before
            alignment.
        closing_steps: number of steps of plain training on the retained data at the end.
    """

    name: ClassVar[str] = "tar"
    version: ClassVar[int] = 3
    weight_copies: ClassVar[int] = 7
    works_on_shards: ClassVar[bool] = True

    inner_steps: int = 64
    learning_rates: tuple[float, ...] = (2e-6, 2e-5, 4e-5)
    weight_decay: float = 0.01
    evaluate_every: int = 4
    decay: float = 0.0625
    tamper_scale: float = 4.0
    retain_scale: float = 1.0
    drift_scale: float = 1.0
    beta: float = 0.1
    harmful_rows: int | None = None
    harmful_batch_size: int = 4
    pair_batches: int = 2
    retain: Literal["benign", "refusals"] = "benign"
    benign_rows: int | None = None
    benign_batch_size: int = 8
    alignment_share: float = 0.5
    closing_steps: int = 100

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """The defender's harmful examples, with the refusals of their prompts, and the benign ones that it retains."""
        harmful = DataRequirement(
            role=Role.HARMFUL,
            rows=self.harmful_rows,
            batch_size=self.harmful_batch_size,
            paired=True,
            disjoint_batches=self.inner_steps + self.pair_batches,
        )
        if self.retain == "refusals":
            return (harmful,)
        return harmful, DataRequirement(role=Role.BENIGN, rows=self.benign_rows, batch_size=self.benign_batch_size)

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = [
            *counts(self, "inner_steps", "evaluate_every", "harmful_rows", "harmful_batch_size", "pair_batches"),
            *counts(self, "benign_rows", "benign_batch_size"),
            *not_negative(self, "decay", "weight_decay", "tamper_scale", "retain_scale", "drift_scale"),
            *not_negative(self, "closing_steps"),
            *positive(self, "beta"),
            *shares(self, "alignment_share"),
        ]
        if not self.learning_rates or not all(rate > 0 for rate in self.learning_rates):
            found.append(Problem("learning_rates", f"{list(self.learning_rates)}; expected at least one, each > 0"))
        if self.evaluate_every > 0 and self.inner_steps % self.evaluate_every:
            found.append(
                Problem("evaluate_every", f"{self.evaluate_every} does not divide `inner_steps` {self.inner_steps}")
            )
        return found

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> TarStep:
        """Start a run.

        Raises:
            ConfigError: no step is left between the ordinary alignment and the closing steps.
            ModelError: the layers of the model cannot be found.
        """
        begin = ceil(Fraction(str(self.alignment_share)) * total_steps)
        end = total_steps - self.closing_steps
        if begin >= end:
            text = (
                f"{self.closing_steps} leaves no step of the method: {begin} of the {total_steps} steps of the stage "
                "are ordinary alignment (`alignment_share`); expected fewer, or a longer alignment"
            )
            raise ConfigError([Problem("defense.align.closing_steps", text)])
        return TarStep(self, learner, batches, range(begin, end))


@final
class TarStep:
    """One run of TAR; its state is the reference weights and the number of adversaries so far."""

    def __init__(self, settings: Tar, learner: Learner, batches: BatchProvider, resisting: range) -> None:
        """Store the parts, and copy the trainable parameters.

        Args:
            settings: the settings.
            learner: the model.
            batches: the examples by role.
            resisting: the steps that are neither ordinary alignment nor closing steps.
        """
        from harness.defenses.tar.retention import Retention

        self._settings = settings
        self._learner = learner
        self._batches = batches
        self._resisting = resisting
        self._reference: Gradient = [trainable.detach().clone() for trainable in learner.trainables]
        self._retention = Retention(learner, self._reference, settings.drift_scale)
        self._adversaries = 0

    def backward(self, batch: Batch) -> Metrics:
        """Write the gradient of the step; report the metrics of its terms and the adversary's loss."""
        step, settings = self._learner.steps_taken, self._settings
        aligning = step < self._resisting.start
        if settings.retain == "benign" and not aligning:
            batch = self._batches.next(Role.BENIGN)
        if step not in self._resisting:
            loss, gradient = self._learner.gradient(batch)
            self._learner.set_gradient(gradient)
            return {"loss": loss}
        if 0 < step == self._resisting.start:
            for part, trainable in zip(self._reference, self._learner.trainables, strict=True):
                part.copy_(trainable.detach())
        retention = self._retention.gradient(batch)
        resistance, metrics = self._tamper_resistance()
        metrics = {**retention.metrics, **metrics}
        gradient = retention.gradient
        for part in gradient:
            part.mul_(settings.retain_scale)
        add_scaled(gradient, resistance, settings.tamper_scale)
        self._learner.set_gradient(gradient)
        return metrics

    def _tamper_resistance(self) -> tuple[Gradient, dict[str, Tensor | float]]:
        """Run one adversary; return ``G``, and ``tamper_loss`` and ``adversary_loss`` at its last step."""
        from harness.defenses.tar.adversary import Adversary
        from harness.defenses.tar.preference import Preference

        settings = self._settings
        rng = Random(self._batches.derive(Tar.name, str(self._adversaries)))
        self._adversaries += 1
        adversary = Adversary(self._learner, rng.choice(settings.learning_rates), settings.weight_decay)
        held_out = [
            Preference(self._learner, self._batches.pair(Role.HARMFUL), self._reference, settings.beta)
            for _ in range(settings.pair_batches)
        ]
        resistance: Gradient = []
        metrics: dict[str, Tensor | float] = {}
        for step in range(1, settings.inner_steps + 1):
            metrics["adversary_loss"] = adversary.step(self._batches.next(Role.HARMFUL))
            if step % settings.evaluate_every:
                continue
            weight = exp(settings.decay * (step - settings.inner_steps)) / len(held_out)
            losses = []
            for preference in held_out:
                loss, gradient = preference.gradient(adversary.weights)
                losses.append(loss)
                resistance = resistance or [part.new_zeros(part.shape) for part in gradient]
                add_scaled(resistance, gradient, weight)
            metrics["tamper_loss"] = sum(losses[1:], losses[0]) / len(losses)
        metrics["tamper_gradient_norm"] = self._learner.norm(resistance)
        return resistance, metrics

    def state_dict(self) -> dict[str, Any]:
        """Return the reference weights and the number of adversaries so far."""
        return {"reference": [part.clone() for part in self._reference], "adversaries": self._adversaries}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        for part, saved in zip(self._reference, state["reference"], strict=True):
            part.copy_(saved)
        self._adversaries = int(state["adversaries"])
