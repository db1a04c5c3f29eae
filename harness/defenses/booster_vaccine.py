"""Booster combined with Vaccine: the alignment gradient is computed under Vaccine's perturbation.

The combination in the Booster authors' code (Huang et al., "Booster", ICLR 2025, arXiv 2409.01586, with Huang et al.,
"Vaccine", NeurIPS 2024, arXiv 2402.01109). With ``f`` the alignment loss, ``h`` the harmful loss, ``e`` the attention
outputs and ``delta`` Vaccine's perturbation of them, the gradient passed to the optimizer is
``grad f(w; e + delta) + lamb * (grad h(w) - grad h(w'))``, ``w' = w - alpha * grad h(w) / ||grad h(w)||``. Four forward
and backward passes per step.

Deviations from the authors' code: those of ``booster`` and of ``vaccine``.

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
    from harness.mechanisms.activation_perturbation import ActivationPerturbation
    from harness.protocols import Batch, BatchProvider, Learner, Metrics


@final
@dataclass(frozen=True, kw_only=True)
class BoosterVaccine:
    """Settings of the combination.

    Attributes:
        lamb: weight of Booster's regularizer, lambda in the paper.
        alpha: L2 norm of the gradient step on harmful data.
        rho: L2 norm of Vaccine's perturbation. The authors' script for the combination uses 5.
        harmful_rows: number of harmful examples available to the defender (5,000 in the paper); None uses all of the
            corpus.
        harmful_batch_size: harmful examples per step, over all processes.
    """

    name: ClassVar[str] = "booster_vaccine"
    version: ClassVar[int] = 1
    compares_passes: ClassVar[bool] = True
    weight_copies: ClassVar[int] = 2
    works_on_shards: ClassVar[bool] = True

    lamb: float = 5.0
    alpha: float = 0.1
    rho: float = 5.0
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
            *positive(self, "alpha", "rho"),
            *counts(self, "harmful_rows", "harmful_batch_size"),
        ]

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> BoosterVaccineStep:  # noqa: ARG002
        """Start a run.

        Raises:
            ModelError: dropout is active in the model, or its attention blocks cannot be found.
        """
        from harness.mechanisms.activation_perturbation import ActivationPerturbation

        return BoosterVaccineStep(
            self, learner, HarmfulStep(learner, batches, self.alpha), ActivationPerturbation(learner, self.rho)
        )


@final
class BoosterVaccineStep:
    """One run of the combination. It has no state between steps."""

    def __init__(
        self,
        settings: BoosterVaccine,
        learner: Learner,
        harmful_step: HarmfulStep,
        perturbation: ActivationPerturbation,
    ) -> None:
        """Store the parts."""
        self._settings = settings
        self._learner = learner
        self._harmful_step = harmful_step
        self._perturbation = perturbation

    def backward(self, batch: Batch) -> Metrics:
        """Write the combined gradient; report the metrics of both parts."""
        attenuation = self._harmful_step.attenuation()
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
        """Return an empty dict: a step has no state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing: a step has no state."""
