"""Booster with Vaccine's gradient: the alignment term is taken under Vaccine's perturbation.

The combination in the Booster authors' code (Huang et al., "Booster", ICLR 2025, arXiv 2409.01586, with Huang et al.,
"Vaccine", NeurIPS 2024, arXiv 2402.01109). With ``f`` the alignment loss, ``h`` the harmful loss, ``e`` the attention
outputs and ``delta`` Vaccine's shift of them, the gradient given to the optimizer is
``grad f(w; e + delta) + lamb * (grad h(w) - grad h(w'))``, ``w' = w - alpha * grad h(w) / ||grad h(w)||``. Four forward
and backward passes per step.

Deviations from the authors' code: those of ``booster`` and of ``vaccine``.
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
    from harness.mechanisms.activation_perturbation import Perturbation
    from harness.protocols import Batch, BatchProvider, Learner, Metrics


@final
@dataclass(frozen=True, kw_only=True)
class BoosterVaccine:
    """Settings of the combination.

    Attributes:
        lamb: weight of Booster's regulariser, lambda in the paper.
        alpha: length of the probing step on harmful data.
        rho: length of Vaccine's perturbation. The authors' script for the combination uses 5.
        harmful_rows: rows of harmful data in the defender's hands (5,000 in the paper); None is all that the corpus
            offers.
        harmful_batch_size: harmful rows per step.
    """

    name: ClassVar[str] = "booster_vaccine"
    version: ClassVar[int] = 1
    compares_passes: ClassVar[bool] = True

    lamb: float = 5.0
    alpha: float = 0.1
    rho: float = 5.0
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
            *positive(self, "alpha", "rho"),
            *counts(self, "harmful_rows", "harmful_batch_size"),
        ]

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> BoosterVaccineStep:  # noqa: ARG002
        """Begin a run.

        Raises:
            ModelError: dropout is active in the model, or its attention blocks cannot be found.
        """
        from harness.mechanisms.activation_perturbation import Perturbation

        return BoosterVaccineStep(
            self, learner, HarmfulProbe(learner, batches, self.alpha), Perturbation(learner, self.rho)
        )


@final
class BoosterVaccineStep:
    """One run of the combination. It remembers nothing between steps."""

    def __init__(
        self, settings: BoosterVaccine, learner: Learner, probe: HarmfulProbe, perturbation: Perturbation
    ) -> None:
        """Keep the parts."""
        self._settings = settings
        self._learner = learner
        self._probe = probe
        self._perturbation = perturbation

    def backward(self, batch: Batch) -> Metrics:
        """Write the combined gradient; report what both parts measured."""
        attenuation = self._probe.measure()
        perturbed = self._perturbation.gradient(batch)
        metrics = {
            **perturbed.metrics,
            "loss_gradient_norm": self._learner.norm(perturbed.gradient),
            **attenuation.metrics,
        }
        add_scaled(perturbed.gradient, attenuation.gradient, self._settings.lamb)
        self._learner.set_gradient(perturbed.gradient)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore nothing."""
