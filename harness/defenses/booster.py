"""Booster: alignment that attenuates the effect of a gradient step on harmful data.

Tiansheng Huang, Sihao Hu, Fatih Ilhan, Selim Furkan Tekin, Ling Liu: "Booster: Tackling Harmful Fine-tuning for Large
Language Models via Attenuating Harmful Perturbation", ICLR 2025 (arXiv 2409.01586).

With ``f`` the alignment loss, ``h`` the harmful loss and ``w' = w - alpha * grad h(w) / ||grad h(w)||``, the objective
is ``min f(w) + lamb * (h(w) - h(w'))``. The gradient passed to the optimizer is
``grad f(w) + lamb * (grad h(w) - grad h(w'))``, with both harmful gradients on the same batch. Three forward and
backward passes per step.

Deviations from the authors' code: the weights are restored from a copy instead of by adding the step back; with
gradient accumulation all micro-batches count (theirs drops all but the last); the harmful batch size is a setting and
counts over all processes (theirs is fixed to 10 per process).

Fidelity: parity with the authors' vectors: gradients and weights of their trainer agree to 1e-5
(tests/training/test_golden.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.corpora.examples import Role
from harness.engine.checks import counts, not_negative, positive
from harness.errors import Problem
from harness.mechanisms.harmful_step import HarmfulStep
from harness.protocols import DataRequirement
from harness.training.gradients import add_scaled

if TYPE_CHECKING:
    from harness.protocols import Batch, BatchProvider, Learner, Metrics


@final
@dataclass(frozen=True, kw_only=True)
class Booster:
    """Settings of Booster.

    Attributes:
        lamb: weight of the regularizer, lambda in the paper.
        alpha: L2 norm of the gradient step on harmful data.
        harmful_rows: number of harmful examples available to the defender (5,000 in the paper); None uses all of the
            corpus.
        harmful_batch_size: harmful examples per step, over all processes.
    """

    name: ClassVar[str] = "booster"
    version: ClassVar[int] = 1
    compares_passes: ClassVar[bool] = True
    weight_copies: ClassVar[int] = 2
    works_on_shards: ClassVar[bool] = True

    lamb: float = 5.0
    alpha: float = 0.1
    harmful_rows: int | None = None
    harmful_batch_size: int = 10

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """The defender's harmful examples."""
        return (DataRequirement(role=Role.HARMFUL, rows=self.harmful_rows, batch_size=self.harmful_batch_size),)

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return [
            *not_negative(self, "lamb"),
            *positive(self, "alpha"),
            *counts(self, "harmful_rows", "harmful_batch_size"),
        ]

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> BoosterStep:  # noqa: ARG002
        """Start a run.

        Raises:
            ModelError: dropout is active in the model.
        """
        return BoosterStep(self, learner, HarmfulStep(learner, batches, self.alpha))


@final
class BoosterStep:
    """One run of Booster. It has no state between steps."""

    def __init__(self, settings: Booster, learner: Learner, harmful_step: HarmfulStep) -> None:
        """Store the parts."""
        self._settings = settings
        self._learner = learner
        self._harmful_step = harmful_step

    def backward(self, batch: Batch) -> Metrics:
        """Write the combined gradient; report ``loss`` (f), its gradient's norm and the regularizer's metrics."""
        attenuation = self._harmful_step.attenuation()
        loss, gradient = self._learner.gradient(batch)
        metrics = {"loss": loss, "loss_gradient_norm": self._learner.norm(gradient), **attenuation.metrics}
        add_scaled(gradient, attenuation.gradient, self._settings.lamb)
        self._learner.set_gradient(gradient)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict: a step has no state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing: a step has no state."""
