"""Antibody, first part: alignment in a flat region of the harmful loss, with refusals learned where harm would lead.

Quoc Minh Nguyen, Trung Le, Jing Wu, Anh Tuan Bui, Mehrtash Harandi: "Antibody: Strengthening Defense Against Harmful
Fine-Tuning for Large Language Models via Attenuating Harmful Gradient Influence", ICLR 2026 (arXiv 2603.00498).

With ``f`` the alignment loss, ``h`` the loss on harmful answers and ``r`` that on refusals of the same prompts:

1. ``w' = w - rho * grad h(w) / ||grad h(w)||``, over all trainable parameters;
2. the gradient of the sharpness ``h(w) - h(w')`` is ``g_s = grad h(w) - grad h(w')``, to first order;
3. its weight is ``lambda = max(0, xi - <g_s, grad f(w)> / ||g_s||^2)``: the smallest for which the inner product of
   ``grad f(w) + lambda * g_s`` with ``g_s`` is at least ``xi * ||g_s||^2``, so that the step lowers the sharpness;
4. the gradient passed to the optimizer is ``grad f(w) + lambda * g_s + refusal_weight * grad r(w')``.

Four forward and backward passes per step. With a constant ``lambda`` and without the refusals it is Booster's step. The
weight is computed from the gradients of the whole step, whatever the micro-batches.

Deviations: the paper's second part, which weights the user's examples by how much the model prefers their answers to a
refusal, needs losses per example and is not implemented, so results are not those of the whole method. A public
re-implementation caps ``lambda`` at 10; the equation does not, and at ``xi`` 0 ``lambda * g_s`` is never longer than
``grad f(w)``.

Fidelity: equations second-hand. The authors have released no code; the equations are those of a public
re-implementation that cites the paper's equations 10 and 11 and its theorem 4.1 (SafeTune, commit 87deac3), as are the
defaults, which are not the paper's. The weight and the whole step are computed by hand in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.corpora.examples import Role
from harness.engine.checks import counts, not_negative, positive
from harness.errors import Problem
from harness.protocols import DataRequirement
from harness.training.gradients import EPSILON, add_scaled, inner_product, refuse_dropout

if TYPE_CHECKING:
    from harness.protocols import Batch, BatchProvider, Learner, Metrics


@final
@dataclass(frozen=True, kw_only=True)
class Antibody:
    """Settings of Antibody's alignment.

    Attributes:
        rho: L2 norm of the step towards a lower harmful loss.
        xi: margin by which the step lowers the sharpness.
        refusal_weight: weight of the refusal loss after that step.
        harmful_rows: number of harmful examples available to the defender; None uses all of the corpus.
        harmful_batch_size: harmful examples per step, over all processes, and as many refusals.
    """

    name: ClassVar[str] = "antibody"
    version: ClassVar[int] = 1
    compares_passes: ClassVar[bool] = True
    weight_copies: ClassVar[int] = 4
    works_on_shards: ClassVar[bool] = True

    rho: float = 0.05
    xi: float = 0.0
    refusal_weight: float = 1.0
    harmful_rows: int | None = None
    harmful_batch_size: int = 10

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """The defender's harmful examples, with the refusals of their prompts."""
        role, rows, size = Role.HARMFUL, self.harmful_rows, self.harmful_batch_size
        return (DataRequirement(role=role, rows=rows, batch_size=size, paired=True),)

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return [
            *positive(self, "rho"),
            *not_negative(self, "xi", "refusal_weight"),
            *counts(self, "harmful_rows", "harmful_batch_size"),
        ]

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> AntibodyStep:  # noqa: ARG002
        """Start a run.

        Raises:
            ModelError: dropout is active in the model.
        """
        return AntibodyStep(self, learner, batches)


@final
class AntibodyStep:
    """One run of Antibody's alignment. It has no state between steps."""

    def __init__(self, settings: Antibody, learner: Learner, batches: BatchProvider) -> None:
        """Check that dropout is off.

        Raises:
            ModelError: the model applies dropout.
        """
        refuse_dropout(learner.module, "Antibody")
        self._settings = settings
        self._learner = learner
        self._batches = batches

    def backward(self, batch: Batch) -> Metrics:
        """Write the combined gradient; report ``loss`` (f), the other losses, sharpness, its weight and norms."""
        settings, learner = self._settings, self._learner
        loss, gradient = learner.gradient(batch)
        pair = self._batches.pair(Role.HARMFUL)
        harmful_loss, sharpness = learner.gradient(pair.harmful)
        norm = learner.norm(sharpness)
        with learner.perturbed(sharpness, -settings.rho / (norm + EPSILON)):
            lower_loss, lower = learner.gradient(pair.harmful)
            refusal_loss, refusal = learner.gradient(pair.refusal)
        add_scaled(sharpness, lower, -1.0)
        square = inner_product(sharpness, sharpness)
        weight = (settings.xi - inner_product(sharpness, gradient) / square).clamp(min=0.0).where(square > 0, 0.0)
        metrics = {
            "loss": loss,
            "loss_gradient_norm": learner.norm(gradient),
            "harmful_loss": harmful_loss,
            "harmful_gradient_norm": norm,
            "sharpness": harmful_loss - lower_loss,
            "sharpness_weight": weight,
            "refusal_loss": refusal_loss,
        }
        for part, direction in zip(gradient, sharpness, strict=True):
            part.add_(direction * weight)
        add_scaled(gradient, refusal, settings.refusal_weight)
        learner.set_gradient(gradient)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict: a step has no state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing: a step has no state."""
