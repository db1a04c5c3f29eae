"""Panacea: optimize a perturbation that maximizes the harmful loss during fine-tuning, and add it afterwards.

Yibo Wang, Tiansheng Huang, Li Shen, Huanjin Yao, Haotian Luo, Rui Liu, Naiqiang Tan, Jiaxing Huang, Dacheng Tao:
"Panacea: Mitigating Harmful Fine-tuning for Large Language Models via Post-fine-tuning Perturbation", NeurIPS 2025
(arXiv 2501.18100).

With ``g`` the user's loss and ``h`` the loss on the defender's harmful data, the objective is ``min over w, max over
||eps|| <= rho of g(w) - lamb * (h(w + eps) - h(w))``. One step:

1. ``eps = rho * grad h(w) / (||grad h(w)|| + 1e-7)``, one norm over all trainable parameters;
2. the gradient passed to the optimizer is ``grad g(w) - lamb * (grad h(w + eps) - grad h(w))``, both harmful gradients
   on the same batch, to first order. Three forward and backward passes;
3. after training, the repair adds the perturbation: ``w + eps``, with ``eps`` of the last step or the mean over all.

Deviations from the authors' code, which does not run as published (it instantiates a class under a wrong name and calls
``backward`` on an undefined variable): the weights are restored from a copy instead of by subtraction; their clipped
harmful loss ``min(h(w + eps), 5)``, whose gradient is zero above the cap, is the option ``harmful_cap: 5``, because
neither the equations nor a published number depend on it; the metric ``loss`` is ``g``, theirs is ``h(w + eps)``; the
harmful batch size is a setting (10 there). They add the perturbation of the last step, which depends on a single batch;
the norm of the mean is below ``rho`` if the directions differ, and it is not rescaled.

Fidelity: hand-computed only. The numbers are computed by hand in the tests; no vectors of the authors' trainer were
available.
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
        rho: L2 norm of the perturbation.
        lamb: weight of the harmful terms, lambda in the paper.
        harmful_cap: upper bound of the perturbed harmful loss; None does not bound it.
        harmful_rows: number of harmful examples available to the defender (1,000 in the authors' scripts); None uses
            all of the corpus.
        harmful_batch_size: harmful examples per step, over all processes.
    """

    name: ClassVar[str] = "panacea"
    version: ClassVar[int] = 1
    beyond_gradients: ClassVar[str] = "hands the perturbation that it has found on to the repair"
    compares_passes: ClassVar[bool] = True
    weight_copies: ClassVar[int] = 5

    rho: float = 1.0
    lamb: float = 0.001
    harmful_cap: float | None = None
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
            *positive(self, "rho", "harmful_cap"),
            *counts(self, "harmful_rows", "harmful_batch_size"),
        ]

    def conflicts(self, slots: Mapping[str, Named | None]) -> list[Problem]:
        """Return a problem unless the repair slot adds the perturbation."""
        if isinstance(slots["repair"], PanaceaRepair):
            return []
        found = f"holds `{slots['repair'].name}`" if slots["repair"] else "is empty"
        advice = "Set `defense/repair=panacea`"
        text = f"`panacea` computes a perturbation for `panacea` in `defense.repair`, which {found}. {advice}"
        return [Problem("", text)]

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> PanaceaStep:  # noqa: ARG002
        """Start a run.

        Raises:
            ModelError: dropout is active in the model.
        """
        return PanaceaStep(self, learner, batches)


@final
class PanaceaStep:
    """One run of Panacea; its outputs are the perturbations ``last`` and ``mean``."""

    def __init__(self, settings: Panacea, learner: Learner, batches: BatchProvider) -> None:
        """Initialize the perturbation to zero.

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
        """Write the combined gradient; report both losses, the increase of the harmful one and its gradient's norm."""
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
        below_cap = 1.0 if settings.harmful_cap is None else (perturbed_loss < settings.harmful_cap).float()
        for part, after in zip(gradient, perturbed, strict=True):
            part.sub_(after * (settings.lamb * below_cap))
        learner.set_gradient(gradient)
        self._update(epsilon)
        return {
            "loss": loss,
            "harmful_loss": harmful_loss,
            "harmful_loss_rise": perturbed_loss - harmful_loss,
            "harmful_gradient_norm": norm,
        }

    def outputs(self) -> dict[str, Gradient]:
        """Return the perturbation of the last step and the mean over all steps."""
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

    def _update(self, epsilon: Gradient) -> None:
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
    weight_copies: ClassVar[int] = 0

    epsilon: Literal["last", "mean"] = "last"

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """No data."""
        return ()

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return []

    def conflicts(self, slots: Mapping[str, Named | None]) -> list[Problem]:
        """Return a problem unless the fine-tuning slot computes the perturbation."""
        if isinstance(slots["finetune"], Panacea):
            return []
        found = f"`{slots['finetune'].name}`" if slots["finetune"] else "plain training"
        advice = "Set `defense/finetune=panacea`"
        text = f"`panacea` adds the perturbation of `panacea` in `defense.finetune`, which holds {found}. {advice}"
        return [Problem("", text)]

    def repair(
        self,
        learner: Learner,
        *,
        start: Gradient,  # noqa: ARG002
        method_outputs: Mapping[str, Gradient],
        batches: BatchProvider,  # noqa: ARG002
    ) -> dict[str, object]:
        """Add the perturbation computed during fine-tuning.

        Raises:
            ModelError: the fine-tuning method has no such output.
        """
        import torch

        if self.epsilon not in method_outputs:
            raise ModelError(
                "the fine-tuning produced no perturbation; expected one from `panacea` in `defense.finetune`"
            )
        epsilon = method_outputs[self.epsilon]
        with torch.no_grad():
            for parameter, part in zip(learner.trainables, epsilon, strict=True):
                parameter.add_(part)
        return {"epsilon": self.epsilon, "epsilon_norm": float(learner.norm(epsilon))}
