"""Lisa: fine-tuning that alternates between the user's data and alignment data, with a proximal term.

Tiansheng Huang, Sihao Hu, Fatih Ilhan, Selim Furkan Tekin, Ling Liu: "Lisa: Lazy Safety Alignment for Large Language
Models against Harmful Fine-tuning Attack", NeurIPS 2024 (arXiv 2405.18641).

With ``f`` the alignment loss and ``g`` the user's loss: ``alignment_steps`` (K1) steps on
``f(w) + rho/2 ||w - w_U||^2``, then ``user_steps`` (K2) steps on ``g(w) + rho/2 ||w - w_A||^2``, repeated. ``w_A`` and
``w_U`` are the weights at the end of the last alignment and user phase; both are initially the aligned model. The first
phase is alignment. One forward and backward pass per step.

``budget`` determines what happens to the user's batches that arrive during alignment. With ``steps`` they are queued
and trained on later, in order: no example is skipped, the run takes the optimizer steps of its budget, and the user's
data gets ``K2 / (K1 + K2)`` of them; batches left in the queue at the end are reported as ``user_batches_waiting``.
With ``published`` they are discarded, as in the authors' code.

Deviations from the authors' code: its two departures from the paper, discarded batches and a proximal term that is off
for the first tenth of the steps, require ``budget: published`` and ``delay: 0.1``; the drift is logged at every step;
phases are counted in optimizer steps, independent of micro-batches. Where ``delay`` times the steps is a whole number,
the proximal term starts in the step with that index, theirs one step later.

Fidelity: parity with the authors' vectors: eight steps of their trainer over both phases, with ``budget: published``,
agree to 1e-5 (tests/training/test_golden.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from harness.corpora.examples import Role
from harness.engine.checks import counts, not_negative, shares
from harness.errors import ConfigError, Problem
from harness.mechanisms.reference_weights import ReferenceWeights
from harness.protocols import DataRequirement
from harness.training.gradients import add_scaled

if TYPE_CHECKING:
    from harness.protocols import Batch, BatchProvider, Learner, Metrics


@final
@dataclass(frozen=True, kw_only=True)
class Lisa:
    """Settings of Lisa.

    Attributes:
        rho: weight of the proximal term. 1 in the Lisa repository; scripts of the Booster repository use 0.01 and 1.
        alignment_steps: optimizer steps of each alignment phase, K1.
        user_steps: optimizer steps of each user phase, K2.
        delay: fraction of all steps before the proximal term starts; 0.1 in the authors' code.
        budget: what happens to the user's batches that arrive during alignment.
        safety_rows: number of alignment examples available to the defender (10,000 in the authors' scripts); None uses
            all of the corpus.
        safety_batch_size: alignment examples per step; the authors use the batch size of the training.
    """

    name: ClassVar[str] = "lisa"
    version: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 3
    works_on_shards: ClassVar[bool] = True
    gradients_per_step: ClassVar[int] = 1

    rho: float = 1.0
    alignment_steps: int = 100
    user_steps: int = 900
    delay: float = 0.0
    budget: Literal["steps", "published"] = "steps"
    safety_rows: int | None = None
    safety_batch_size: int = 10

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """The defender's alignment examples."""
        return (DataRequirement(role=Role.REFUSAL, rows=self.safety_rows, batch_size=self.safety_batch_size),)

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return [
            *not_negative(self, "rho"),
            *shares(self, "delay"),
            *counts(self, "alignment_steps", "user_steps", "safety_rows", "safety_batch_size"),
        ]

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> LisaStep:
        """Start a run."""
        return LisaStep(self, learner, batches, total_steps)


@final
class LisaStep:
    """One run of Lisa; its state is the phase, the weights at the end of each phase, and the queued user batches."""

    def __init__(self, settings: Lisa, learner: Learner, batches: BatchProvider, total_steps: int) -> None:
        """Start with an alignment phase; both reference weights are the aligned model."""
        self._settings = settings
        self._learner = learner
        self._batches = batches
        self._proximal_from = settings.delay * total_steps
        self._aligning = True
        self._references = {True: ReferenceWeights(learner), False: ReferenceWeights(learner)}
        self._queue: deque[Batch] = deque()

    def backward(self, batch: Batch) -> Metrics:
        """Write the phase's gradient; report its loss, the drift from the other phase's weights and the penalty."""
        self._enter_phase()
        loss, gradient = self._learner.gradient(self._phase_batch(batch))
        offset = self._references[not self._aligning].offset()
        weight = self._settings.rho if self._learner.steps_taken >= self._proximal_from else 0.0
        drift = self._learner.norm(offset)
        add_scaled(gradient, offset, weight)
        self._learner.set_gradient(gradient)
        return {
            "loss": loss,
            "alignment_loss" if self._aligning else "user_loss": loss,
            "drift": drift,
            "proximal": 0.5 * weight * drift.square(),
            "user_batches_waiting": float(len(self._queue)),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the phase, both reference weights and the queued batches of every process, by rank."""
        from harness.training.distributed import all_gather

        own = [dict(batch) for batch in self._queue]
        return {
            "aligning": self._aligning,
            "alignment": self._references[True].state_dict(),
            "user": self._references[False].state_dict(),
            "waiting": all_gather(own),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; of the queued batches, this process's own.

        Raises:
            ConfigError: the state was written by a different number of processes and contains queued batches.
        """
        from harness.training.distributed import rank, world_size

        waiting = state["waiting"]
        if len(waiting) != world_size() and any(waiting):
            raise ConfigError(
                [
                    Problem(
                        "processes",
                        f"{world_size()}, but the checkpoint was written by {len(waiting)}, each of which "
                        f"holds its share of {len(waiting[0])} queued user batches; expected {len(waiting)} again. "
                        "Give the stage as many processes as before in the settings of the `cluster`",
                    )
                ]
            )
        self._aligning = state["aligning"]
        self._references[True].load_state_dict(state["alignment"])
        self._references[False].load_state_dict(state["user"])
        self._queue = deque(waiting[rank()] if any(waiting) else ())

    def _enter_phase(self) -> None:
        """On a change of phase, store the current weights as the reference of the phase that ends."""
        settings = self._settings
        position = self._learner.steps_taken % (settings.alignment_steps + settings.user_steps)
        aligning = position < settings.alignment_steps
        if aligning != self._aligning:
            self._references[self._aligning].update()
            self._aligning = aligning

    def _phase_batch(self, batch: Batch) -> Batch:
        """Return the batch that this step trains on, and queue the user's batch with ``budget: steps``."""
        if self._settings.budget == "published":
            return self._batches.next(Role.REFUSAL) if self._aligning else batch
        self._queue.append(batch)
        if self._aligning:
            return self._batches.next(Role.REFUSAL)
        return self._queue.popleft()
