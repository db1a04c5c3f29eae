"""AsFT: fine-tuning with a penalty on the part of the user's change that leaves the directions of alignment.

Shuo Yang et al.: "AsFT: Anchoring Safety During LLM Fine-Tuning Within Narrow Safety Basin" (arXiv 2506.08473).

With ``g`` the user's loss, ``V`` the change of an adapted layer's matrix by alignment and ``C = V V^T / ||V||_F`` as in
Safe LoRA, the loss is ``g + lamb * sum over layers of ||(I - C) B A||_F^2``, without the adapter's scale. One forward
and backward pass per step: the penalty is a function of the factors and needs no pass, and no matrix of the layer's
size. It is added once per step, whatever the micro-batches.

``C`` is no projector: ``I - C`` does not vanish on the columns of ``V``, and with a small ``V`` the penalty is close to
plain decay of ``B A``. ``projector: orthogonal`` is the orthogonal projector onto these columns. The paper's ``V`` is
the difference of a chat model and its base; here it is the aligned adapter's product, of its rank.

``B A`` is the user's change with ``finetune.adapter: double``, as in the paper. With ``single`` the aligned product is
subtracted first; the penalty and its gradient are then exactly zero in the first step. Layers that alignment did not
change are not penalized.

Fidelity: hand-computed only. Penalty, ``lamb`` and ``C`` are those of the authors' code (commit 07b606e); the loss and
its gradient are computed by hand in the tests, no vectors of the authors' trainer were available.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from harness.engine.checks import not_negative
from harness.errors import Problem
from harness.mechanisms.weight_change import PROJECTORS, aligned_layers
from harness.training.gradients import add_scaled

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols import Batch, BatchProvider, DataRequirement, Learner, Metrics


@final
@dataclass(frozen=True, kw_only=True)
class AsFT:
    """Settings of AsFT.

    Attributes:
        lamb: weight of the penalty.
        projector: ``published`` is ``V V^T / ||V||_F``, ``orthogonal`` the projector onto the columns of ``V``.
    """

    name: ClassVar[str] = "asft"
    version: ClassVar[int] = 1
    needs_plain_lora: ClassVar[bool] = True
    uses_alignment: ClassVar[bool] = True
    gradients_per_step: ClassVar[int] = 1

    lamb: float = 1.0
    projector: Literal["published", "orthogonal"] = "published"

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Only the stage's own examples."""
        return ()

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return not_negative(self, "lamb")

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> AsFTStep:  # noqa: ARG002
        """Start a run.

        Raises:
            ModelError: what is trained is not plain LoRA, or alignment changed no layer.
        """
        return AsFTStep(self, learner)


@final
class AsFTStep:
    """One run of AsFT; its state is the initial parameters."""

    def __init__(self, settings: AsFT, learner: Learner) -> None:
        """Copy the initial parameters and compute the projectors.

        Raises:
            ModelError: what is trained is not plain LoRA, or alignment changed no layer.
        """
        self._settings = settings
        self._learner = learner
        self._start = [weight.detach().clone() for weight in learner.trainables]
        projectors = PROJECTORS[settings.projector]
        places = {id(weight): place for place, weight in enumerate(learner.trainables)}
        self._layers = [
            (places[id(layer.a)], places[id(layer.b)], layer.held is not None, projectors(layer.alignment))
            for layer in aligned_layers(learner, self._start)
            if layer.alignment is not None
        ]

    def backward(self, batch: Batch) -> Metrics:
        """Write the gradient of the penalized loss; report the user's ``loss`` and the unweighted ``penalty``."""
        import torch

        loss, gradient = self._learner.gradient(batch)
        penalty = self._penalty()
        own = torch.autograd.grad(penalty, self._learner.trainables, materialize_grads=True)
        add_scaled(gradient, list(own), self._settings.lamb)
        self._learner.set_gradient(gradient)
        return {"loss": loss, "penalty": penalty.detach()}

    def _penalty(self) -> Tensor:
        import torch

        terms = []
        for place_a, place_b, continued, projector in self._layers:
            a: Tensor = self._learner.trainables[place_a]
            b: Tensor = self._learner.trainables[place_b]
            first_a, first_b = self._start[place_a], self._start[place_b]
            if continued:
                # B A - B_0 A_0, in the form that is exactly zero at the start.
                a, b = torch.cat([a, a - first_a]), torch.cat([b - first_b, first_b], dim=1)
            outside = b - projector.columns @ (projector.mapping @ b)
            terms.append(((outside.T @ outside) * (a @ a.T)).sum())
        return torch.stack(terms).sum()

    def state_dict(self) -> dict[str, Any]:
        """Return the initial parameters."""
        return {"start": self._start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        for own, stored in zip(self._start, state["start"], strict=True):
            own.copy_(stored)
