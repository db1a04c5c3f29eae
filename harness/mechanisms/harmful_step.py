"""Booster's regularizer: the decrease of the harmful loss after one normalized gradient step on harmful data.

Tiansheng Huang, Sihao Hu, Fatih Ilhan, Selim Furkan Tekin, Ling Liu: "Booster: Tackling Harmful Fine-tuning for Large
Language Models via Attenuating Harmful Perturbation", ICLR 2025 (arXiv 2409.01586). The regularizer is
``h(w) - h(w - alpha * grad h(w) / ||grad h(w)||)``. Its gradient is approximated to first order, as in the paper:
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
    """Gradient and metrics of the regularizer at the current weights.

    Attributes:
        gradient: ``grad h(w) - grad h(w')``.
        metrics: ``harmful_loss`` h(w); ``harmful_loss_drop`` h(w) - h(w'); ``harmful_gradient_norm`` ||grad h(w)||;
            ``attenuation_norm`` the norm of ``gradient``.
    """

    gradient: Gradient
    metrics: Metrics


class HarmfulStep:
    """Computes the regularizer on the defender's harmful data.

    Args:
        learner: the model.
        batches: provider of the harmful batches.
        alpha: L2 norm of the gradient step.

    Raises:
        ModelError: the model applies dropout, whose masks would add noise to the difference of the two gradients.
    """

    def __init__(self, learner: Learner, batches: BatchProvider, alpha: float) -> None:
        """Check that dropout is off."""
        refuse_dropout(learner.module, "Booster")
        self._learner = learner
        self._batches = batches
        self._alpha = alpha

    def attenuation(self) -> Attenuation:
        """Compute both gradients on the next harmful batch; the weights are unchanged on return."""
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
