"""Panacea: learn during fine-tuning which perturbation hurts harmful behaviour most, and add it afterwards.

Yibo Wang, Tiansheng Huang, Li Shen, Huanjin Yao, Haotian Luo, Rui Liu, Naiqiang Tan, Jiaxing Huang, Dacheng Tao:
"Panacea: Mitigating Harmful Fine-tuning for Large Language Models via Post-fine-tuning Perturbation", NeurIPS 2025
(arXiv 2501.18100).

With ``g`` the user's loss, ``h`` the harmful loss on a batch of the defender's, the aim is ``min over w, max over
||eps|| <= rho of g(w) - lamb * (h(w + eps) - h(w))``. One step:

1. ``eps = rho * grad h(w) / (||grad h(w)|| + 1e-7)``, one norm over all trainables;
2. the gradient given to the optimizer is ``grad g(w) - lamb * (grad h(w + eps) - grad h(w))``, both harmful gradients
   on one batch, to first order. Three forward and backward passes;
3. after training, the repair adds the perturbation: ``w + eps``, of the last step or the mean over all steps.

Deviations from the authors' code, which does not run as published (it instantiates a class under a wrong name and
back-propagates a variable that does not exist): the weights are restored from a copy instead of by subtracting; their
clipped harmful loss ``min(h(w + eps), 5)``, whose gradient is zero once the loss is there, is the option
``harmful_cap: 5``, since neither the equations nor a published number rest on it; the metric ``loss`` is ``g``, where
theirs logs ``h(w + eps)``; the harmful batch size is a setting (10 there). They add the last step's perturbation, which
is one noisy batch's; the mean is shorter than ``rho`` when the directions disagree, and is not stretched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from harness.corpora.examples import Role
from harness.engine.checks import counts, not_negative, positive
from harness.errors import ModelError, Problem
from harness.protocols import DataRequirement
from harness.training.gradients import EPSILON, add_scaled, refuse_dropout

if TYPE_CHECKING:
    from harness.protocols import Batch, BatchProvider, Gradient, Learner, Metrics, Named


@final
@dataclass(frozen=True, kw_only=True)
class Panacea:
    """Settings of the fine-tuning slot.

    Attributes:
        rho: length of the perturbation.
        lamb: weight of the harmful terms, lambda in the paper.
        harmful_cap: the harmful loss under the perturbation counts up to here; None is without end.
        harmful_rows: rows of harmful data in the defender's hands (1,000 in the authors' scripts); None is all that the
            corpus offers.
        harmful_batch_size: harmful rows per step.
    """

    name: ClassVar[str] = "panacea"
    version: ClassVar[int] = 1
    compares_passes: ClassVar[bool] = True

    rho: float = 1.0
    lamb: float = 0.001
    harmful_cap: float | None = None
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
            *positive(self, "rho", "harmful_cap"),
            *counts(self, "harmful_rows", "harmful_batch_size"),
        ]

    def conflicts(self, slots: Mapping[str, Named | None]) -> list[Problem]:
        """Return that the perturbation is learned and not added, if so."""
        if isinstance(slots["repair"], PanaceaRepair):
            return []
        found = f"holds `{slots['repair'].name}`" if slots["repair"] else "is empty"
        advice = "Set `defense/repair=panacea`"
        return [Problem("", f"`panacea` learns what `panacea` adds in `defense.repair`, which {found}. {advice}")]

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> PanaceaStep:  # noqa: ARG002
        """Begin a run.

        Raises:
            ModelError: dropout is active in the model.
        """
        return PanaceaStep(self, learner, batches)


@final
class PanaceaStep:
    """One run of Panacea; hands over ``last`` and ``mean``, the perturbations that can be added."""

    def __init__(self, settings: Panacea, learner: Learner, batches: BatchProvider) -> None:
        """Start without a perturbation.

        Raises:
            ModelError: dropout is active in the model.
        """
        import torch

        refuse_dropout(learner.module, "Panacea")
        self._settings = settings
        self._learner = learner
        self._batches = batches
        self._last = [torch.zeros_like(parameter, requires_grad=False) for parameter in learner.trainables]
        self._mean = [part.clone() for part in self._last]
        self._count = 0

    def backward(self, batch: Batch) -> Metrics:
        """Write the combined gradient; report both losses, the harmful one's rise, and the harmful gradient's norm."""
        settings, learner = self._settings, self._learner
        loss, gradient = learner.gradient(batch)
        harmful = self._batches.next(Role.HARMFUL)
        harmful_loss, epsilon = learner.gradient(harmful)
        norm = learner.norm(epsilon)
        add_scaled(gradient, epsilon, settings.lamb)
        for part in epsilon:
            part.mul_(settings.rho / (norm + EPSILON))
        with learner.perturbed(epsilon, 1.0):
            perturbed_loss, perturbed = learner.gradient(harmful)
        below = 1.0 if settings.harmful_cap is None else (perturbed_loss < settings.harmful_cap).float()
        for part, after in zip(gradient, perturbed, strict=True):
            part.sub_(after * (settings.lamb * below))
        learner.set_gradient(gradient)
        self._keep(epsilon)
        return {
            "loss": loss,
            "harmful_loss": harmful_loss,
            "harmful_loss_rise": perturbed_loss - harmful_loss,
            "harmful_gradient_norm": norm,
        }

    def outputs(self) -> dict[str, Gradient]:
        """Return the perturbation of the last batch and the mean over all."""
        return {"last": self._last, "mean": self._mean}

    def state_dict(self) -> dict[str, Any]:
        """Return the perturbations."""
        return {"last": self._last, "mean": self._mean, "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the perturbations."""
        for own, stored in ((self._last, state["last"]), (self._mean, state["mean"])):
            for part, value in zip(own, stored, strict=True):
                part.copy_(value)
        self._count = int(state["count"])

    def _keep(self, epsilon: Gradient) -> None:
        self._count += 1
        for mean, part in zip(self._mean, epsilon, strict=True):
            mean.lerp_(part, 1 / self._count)
        self._last = epsilon


@final
@dataclass(frozen=True, kw_only=True)
class PanaceaRepair:
    """Settings of the repair slot.

    Attributes:
        epsilon: which perturbation is added: the ``last`` one (published) or the ``mean`` over all steps.
    """

    name: ClassVar[str] = "panacea"
    version: ClassVar[int] = 1

    epsilon: Literal["last", "mean"] = "last"

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """No data."""
        return ()

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return []

    def conflicts(self, slots: Mapping[str, Named | None]) -> list[Problem]:
        """Return that fine-tuning learns no perturbation, if so."""
        if isinstance(slots["finetune"], Panacea):
            return []
        found = f"`{slots['finetune'].name}`" if slots["finetune"] else "plain training"
        advice = "Set `defense/finetune=panacea`"
        return [
            Problem("", f"`panacea` adds what `panacea` learns in `defense.finetune`, which holds {found}. {advice}")
        ]

    def repair(
        self,
        learner: Learner,
        *,
        start: Gradient,  # noqa: ARG002
        method_outputs: Mapping[str, Gradient],
        batches: BatchProvider,  # noqa: ARG002
    ) -> dict[str, object]:
        """Add the perturbation that the fine-tuning handed over.

        Raises:
            ModelError: it handed over none.
        """
        import torch

        if self.epsilon not in method_outputs:
            raise ModelError(
                "the fine-tuning left no perturbation; expected one of the method `panacea` in `defense.finetune`"
            )
        epsilon = method_outputs[self.epsilon]
        with torch.no_grad():
            for parameter, part in zip(learner.trainables, epsilon, strict=True):
                parameter.add_(part)
        return {"epsilon": self.epsilon, "epsilon_norm": float(learner.norm(epsilon))}
