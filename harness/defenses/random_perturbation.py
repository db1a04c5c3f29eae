"""Random perturbation: after fine-tuning, add Gaussian noise of a given norm to the adapter.

The control that motivates Panacea (Yibo Wang, Tiansheng Huang, Li Shen, et al.: "Panacea: Mitigating Harmful
Fine-tuning for Large Language Models via Post-fine-tuning Perturbation", NeurIPS 2025, arXiv 2501.18100): noise lowers
the harmful score, but also the accuracy. ``w + rho * z / ||z||`` with ``z`` standard normal and one norm over all
trainable parameters, so that at the same ``rho`` it has the norm of Panacea's perturbation.

Fidelity: hand-computed only. Norm and distribution of the noise are checked in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from harness.engine.checks import positive
from harness.errors import Problem

if TYPE_CHECKING:
    from harness.protocols import BatchProvider, DataRequirement, Gradient, Learner


@final
@dataclass(frozen=True, kw_only=True)
class RandomPerturbation:
    """Settings of the control.

    Attributes:
        rho: L2 norm of the noise, over all trainable parameters.
    """

    name: ClassVar[str] = "random_perturbation"
    version: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 1

    rho: float = 1.0

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """No data."""
        return ()

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return positive(self, "rho")

    def repair(
        self,
        learner: Learner,
        *,
        start: Gradient,  # noqa: ARG002
        method_outputs: Mapping[str, Gradient],  # noqa: ARG002
        batches: BatchProvider,
    ) -> dict[str, object]:
        """Add the noise."""
        import torch

        # Sampled on the CPU, so that the noise does not depend on the device.
        rng = torch.Generator().manual_seed(batches.derive(self.name))
        noise = [torch.randn(part.shape, generator=rng).to(part.device) for part in learner.trainables]
        scale = self.rho / learner.norm(noise)
        with torch.no_grad():
            for parameter, part in zip(learner.trainables, noise, strict=True):
                parameter.add_(part * scale)
        return {"rho": self.rho}
