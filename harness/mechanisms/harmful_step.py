"""Booster's regulariser: how much one small step on harmful data would lower the harmful loss.

Tiansheng Huang, Sihao Hu, Fatih Ilhan, Selim Furkan Tekin, Ling Liu: "Booster: Tackling Harmful Fine-tuning for Large
Language Models via Attenuating Harmful Perturbation", ICLR 2025 (arXiv 2409.01586). The regulariser is
``h(w) - h(w - alpha * grad h(w) / ||grad h(w)||)``. Its gradient is taken to first order, as in the paper:
``grad h(w) - grad h(w')``, without the derivative of the step itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from harness.corpora.examples import Role
from harness.training.gradients import EPSILON, refuse_dropout

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols import BatchProvider, Gradient, Learner, Metrics


class Attenuation(NamedTuple):
    """The regulariser at the present weights.

    Attributes:
        gradient: ``grad h(w) - grad h(w')``.
        metrics: ``harmful_loss`` h(w); ``harmful_loss_drop`` h(w) - h(w'); ``harmful_gradient_norm`` ||grad h(w)||;
            ``attenuation_norm`` the norm of ``gradient``.
    """

    gradient: Gradient
    metrics: Metrics


class HarmfulProbe:
    """Measures the regulariser on the defender's harmful data.

    Args:
        learner: the model.
        batches: gives the harmful batches.
        alpha: length of the probing step.

    Raises:
        ModelError: the model drops out activations, which would put mask noise into the difference of gradients.
    """

    def __init__(self, learner: Learner, batches: BatchProvider, alpha: float) -> None:
        """Check that the model is deterministic."""
        refuse_dropout(learner.module, "Booster")
        self._learner = learner
        self._batches = batches
        self._alpha = alpha

    def measure(self) -> Attenuation:
        """Draw one harmful batch and use it for both passes; the weights are left exactly as they were."""
        batch = self._batches.next(Role.HARMFUL)
        loss, gradient = self._learner.gradient(batch)
        norm = self._learner.norm(gradient)
        with self._learner.perturbed(gradient, -self._alpha / (norm + EPSILON)):
            loss_after, gradient_after = self._learner.gradient(batch)
        for part, part_after in zip(gradient, gradient_after, strict=True):
            part.sub_(part_after)
        metrics: dict[str, Tensor | float] = {
            "harmful_loss": loss,
            "harmful_loss_drop": loss - loss_after,
            "harmful_gradient_norm": norm,
            "attenuation_norm": self._learner.norm(gradient),
        }
        return Attenuation(gradient, metrics)
