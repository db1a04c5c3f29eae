"""Vaccine: align under the perturbation of the attention outputs that hurts most.

Tiansheng Huang, Sihao Hu, Ling Liu: "Vaccine: Perturbation-aware Alignment for Large Language Models against Harmful
Fine-tuning Attack", NeurIPS 2024 (arXiv 2402.01109).

With ``e_l`` the attention outputs and ``G_l = df / de_l``: the gradient given to the optimizer is that of ``f`` with
``e_l + rho * G_l / ||G||`` in place of ``e_l``, one norm over all layers, rows and positions, the shift held constant.
Two forward and backward passes per step. The norm grows with batch and length, so ``rho`` does not carry over between
batch sizes.

Deviations from the authors' code: see ``harness.mechanisms.activation_perturbation``; gradient accumulation is
that of the whole step's batch, its norm included, instead of dropping all micro-batches but the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.engine.checks import positive
from harness.errors import Problem

if TYPE_CHECKING:
    from harness.mechanisms.activation_perturbation import Perturbation
    from harness.protocols import Batch, BatchProvider, DataRequirement, Learner, Metrics


@final
@dataclass(frozen=True, kw_only=True)
class Vaccine:
    """Settings of Vaccine.

    Attributes:
        rho: length of the perturbation. 2 in the Vaccine repository; the Booster repository's script uses 5.
    """

    name: ClassVar[str] = "vaccine"
    version: ClassVar[int] = 1

    rho: float = 2.0

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Nothing besides the stage's own batches."""
        return ()

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return positive(self, "rho")

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> VaccineStep:  # noqa: ARG002
        """Begin a run.

        Raises:
            ModelError: the attention blocks of the model cannot be found.
        """
        from harness.mechanisms.activation_perturbation import Perturbation

        return VaccineStep(learner, Perturbation(learner, self.rho))


@final
class VaccineStep:
    """One run of Vaccine. It remembers nothing between steps."""

    def __init__(self, learner: Learner, perturbation: Perturbation) -> None:
        """Keep the parts."""
        self._learner = learner
        self._perturbation = perturbation

    def backward(self, batch: Batch) -> Metrics:
        """Write the gradient under the perturbation; report both losses and the norm of the activation gradient."""
        perturbed = self._perturbation.gradient(batch)
        self._learner.set_gradient(perturbed.gradient)
        return perturbed.metrics

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore nothing."""
