"""Vaccine: alignment under the worst-case perturbation of the attention outputs.

Tiansheng Huang, Sihao Hu, Ling Liu: "Vaccine: Perturbation-aware Alignment for Large Language Models against Harmful
Fine-tuning Attack", NeurIPS 2024 (arXiv 2402.01109).

With ``e_l`` the attention outputs and ``G_l = df / de_l``, the gradient is that of ``f`` with
``e_l + rho * G_l / ||G||`` in place of ``e_l``, with one norm over all layers, examples and positions, and the
perturbation held constant. Two forward and backward passes per step. The norm grows with batch size and length, so
values of ``rho`` are not comparable between batch sizes.

Deviations from the authors' code: see ``harness.mechanisms.activation_perturbation``; with gradient accumulation all
micro-batches count, also in the norm (theirs drops all but the last).

Fidelity: parity with the authors' vectors: gradients and weights of their trainer agree to 1e-5
(tests/training/test_golden.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.engine.checks import positive
from harness.errors import Problem

if TYPE_CHECKING:
    from harness.mechanisms.activation_perturbation import ActivationPerturbation
    from harness.protocols import Batch, BatchProvider, DataRequirement, Learner, Metrics


@final
@dataclass(frozen=True, kw_only=True)
class Vaccine:
    """Settings of Vaccine.

    Attributes:
        rho: L2 norm of the perturbation. 2 in the Vaccine repository; the Booster repository's script uses 5.
    """

    name: ClassVar[str] = "vaccine"
    version: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 0
    works_on_shards: ClassVar[bool] = True

    rho: float = 2.0

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Only the stage's own examples."""
        return ()

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return positive(self, "rho")

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> VaccineStep:  # noqa: ARG002
        """Start a run.

        Raises:
            ModelError: the attention blocks of the model cannot be found.
        """
        from harness.mechanisms.activation_perturbation import ActivationPerturbation

        return VaccineStep(learner, ActivationPerturbation(learner, self.rho))


@final
class VaccineStep:
    """One run of Vaccine. It has no state between steps."""

    def __init__(self, learner: Learner, perturbation: ActivationPerturbation) -> None:
        """Store the parts."""
        self._learner = learner
        self._perturbation = perturbation

    def backward(self, batch: Batch) -> Metrics:
        """Write the gradient under the perturbation; report both losses and the norm of the activation gradient."""
        perturbed = self._perturbation.gradient(batch)
        self._learner.set_gradient(perturbed.gradient)
        return perturbed.metrics

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict: a step has no state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing: a step has no state."""
