"""Booster: align while attenuating what a step on harmful data would gain.

Tiansheng Huang, Sihao Hu, Fatih Ilhan, Selim Furkan Tekin, Ling Liu: "Booster: Tackling Harmful Fine-tuning for Large
Language Models via Attenuating Harmful Perturbation", ICLR 2025 (arXiv 2409.01586).

With ``f`` the alignment loss, ``h`` the harmful loss and ``w' = w - alpha * grad h(w) / ||grad h(w)||``, the aim is
``min f(w) + lamb * (h(w) - h(w'))``. The gradient given to the optimizer is
``grad f(w) + lamb * (grad h(w) - grad h(w'))``, with both harmful gradients on the same batch. Three forward and
backward passes per step.

Deviations from the authors' code: the weights are restored from a copy instead of by adding the step back; gradient
accumulation is that of the whole step's batch instead of dropping all micro-batches but the last; the harmful
batch size is a setting (theirs is fixed to 10 per process, here it counts over all processes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.corpora.examples import Role
from harness.engine.checks import counts, not_negative, positive
from harness.errors import Problem
from harness.mechanisms.harmful_step import HarmfulProbe
from harness.protocols import DataRequirement
from harness.training.gradients import add_scaled

if TYPE_CHECKING:
    from harness.protocols import Batch, BatchProvider, Learner, Metrics


@final
@dataclass(frozen=True, kw_only=True)
class Booster:
    """Settings of Booster.

    Attributes:
        lamb: weight of the regulariser, lambda in the paper.
        alpha: length of the probing step on harmful data.
        harmful_rows: rows of harmful data in the defender's hands (5,000 in the paper); None is all that the corpus
            offers.
        harmful_batch_size: harmful rows per step.
    """

    name: ClassVar[str] = "booster"
    version: ClassVar[int] = 1
    compares_passes: ClassVar[bool] = True

    lamb: float = 5.0
    alpha: float = 0.1
    harmful_rows: int | None = None
    harmful_batch_size: int = 10

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """The defender's harmful rows."""
        return (DataRequirement(role=Role.HARMFUL, rows=self.harmful_rows, batch_size=self.harmful_batch_size),)

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return [
            *not_negative(self, "lamb"),
            *positive(self, "alpha"),
            *counts(self, "harmful_rows", "harmful_batch_size"),
        ]

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> BoosterStep:  # noqa: ARG002
        """Begin a run.

        Raises:
            ModelError: dropout is active in the model.
        """
        return BoosterStep(self, learner, HarmfulProbe(learner, batches, self.alpha))


@final
class BoosterStep:
    """One run of Booster. It remembers nothing between steps."""

    def __init__(self, settings: Booster, learner: Learner, probe: HarmfulProbe) -> None:
        """Keep the parts."""
        self._settings = settings
        self._learner = learner
        self._probe = probe

    def backward(self, batch: Batch) -> Metrics:
        """Write the combined gradient; report ``loss`` (f), its gradient's norm, and what the probe measured."""
        attenuation = self._probe.measure()
        loss, gradient = self._learner.gradient(batch)
        metrics = {"loss": loss, "loss_gradient_norm": self._learner.norm(gradient), **attenuation.metrics}
        add_scaled(gradient, attenuation.gradient, self._settings.lamb)
        self._learner.set_gradient(gradient)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore nothing."""
