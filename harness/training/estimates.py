"""The learner of zeroth-order training: gradients of plain losses are estimated from forward passes.

It stands between the model and a training method, which uses it as any other learner: the method's gradient is a linear
combination of estimates along one direction per optimizer step, whatever the number of losses and micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from harness.errors import ModelError
from harness.protocols import AsksForGradients, Estimator, Piece, Prediction, Product, TrainMethod
from harness.training.gradients import refuse_dropout
from harness.training.learner import CausalLearner
from harness.training.meter import Meter


class EstimatingLearner:
    """A learner whose gradients are estimates; satisfies ``protocols.Learner``.

    Attributes:
        forward_passes: the number of forward passes of a global batch that estimates and losses have taken.

    Args:
        learner: the model under training.
        estimator: the settings of the estimator.
        method: the defense in the slot; None is plain fine-tuning.
        seed: the seed of the run's directions.
        meter: receives ``kappa`` and its absolute value.

    Raises:
        ModelError: the method cannot run on estimated gradients, or dropout is active in the model.
    """

    def __init__(
        self, learner: CausalLearner, *, estimator: Estimator, method: TrainMethod | None, seed: int, meter: Meter
    ) -> None:
        """Check the method and start the estimator."""
        if method is not None and not isinstance(method, AsksForGradients):
            raise ModelError(f"`{method.name}` cannot run on the estimated gradients of `{estimator.name}`")
        refuse_dropout(learner.module, estimator.name)
        self.forward_passes = 0
        self._learner = learner
        self._estimator = estimator
        self._perturbation = estimator.start(learner.trainables, seed)
        self._meter = meter

    @property
    def module(self) -> Module:
        """The model itself."""
        return self._learner.module

    @property
    def trainables(self) -> Sequence[Parameter]:
        """The parameters that the optimizer updates."""
        return self._learner.trainables

    @property
    def steps_taken(self) -> int:
        """The number of optimizer steps taken in this run."""
        return self._learner.steps_taken

    @property
    def example_count(self) -> int:
        """The number of the stage's own examples that are trained on."""
        return self._learner.example_count

    @property
    def alignment(self) -> Mapping[str, Product]:
        """The change of the weights by alignment, see ``protocols.Learner``."""
        return self._learner.alignment

    def gradient(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the mean of the two losses of a difference quotient, and the estimate of the gradient.

        The entry of a parameter that is frozen in this step is zero, and it is not perturbed.
        """
        step, epsilon = self.steps_taken, self._estimator.epsilon
        direction: list[Tensor | None] = [
            part if trainable.requires_grad else None
            for part, trainable in zip(self._perturbation.direction(step), self.trainables, strict=True)
        ]
        moves = self._whole(direction)
        with self._learner.perturbed(moves, epsilon):
            upper = self.value(batch)
        with self._learner.perturbed(moves, -epsilon):
            lower = self.value(batch)
        kappa = ((upper.double() - lower.double()) / (2 * epsilon)).to(upper.dtype)
        self._meter.add({"kappa": kappa, "kappa_abs": kappa.abs()})
        return (upper + lower) / 2, self._whole(self._perturbation.gradient(step, direction, kappa))

    def value(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean loss over the supervised positions of the global batch, without a graph."""
        self.forward_passes += 1
        return self._learner.value(batch)

    def pieces(self, batch: Mapping[str, Tensor], *, like: Sequence[Piece] | None = None) -> NoReturn:  # noqa: ARG002
        """Refuse: a loss of the method's own is not estimated."""
        self._refuse()

    def predict(self, piece: Piece) -> Prediction:  # noqa: ARG002
        """Refuse: a loss of the method's own is not estimated."""
        self._refuse()

    def loss(self, piece: Piece) -> Tensor:  # noqa: ARG002
        """Refuse: a loss of the method's own is not estimated."""
        self._refuse()

    def accumulate(
        self,
        pieces: Sequence[Piece],  # noqa: ARG002
        shares: Callable[[Piece], tuple[Tensor, ...]],  # noqa: ARG002
    ) -> NoReturn:
        """Refuse: a loss of the method's own is not estimated."""
        self._refuse()

    def norm(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the global L2 norm of tensors that are replicated on every process."""
        return self._learner.norm(tensors)

    def perturbed(self, direction: Sequence[Tensor], scale: Tensor | float) -> AbstractContextManager[None]:
        """Add ``scale * direction`` to the trainable parameters; restore them exactly on exit."""
        return self._learner.perturbed(direction, scale)

    def with_weights(self, values: Sequence[Tensor]) -> AbstractContextManager[None]:
        """Set the trainable parameters to ``values``; restore them exactly on exit."""
        return self._learner.with_weights(values)

    def set_gradient(self, gradient: Sequence[Tensor | None]) -> None:
        """Copy the combined gradient of a step into ``.grad``."""
        self._learner.set_gradient(gradient)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of passes and the estimator's state."""
        return {"forward_passes": self.forward_passes, "perturbation": self._perturbation.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.forward_passes = int(state["forward_passes"])
        self._perturbation.load_state_dict(state["perturbation"])

    def facts(self, optimizer: torch.optim.Optimizer) -> dict[str, int]:
        """Return the forward passes of the run, and the bytes that are kept between steps.

        Args:
            optimizer: the optimizer of the run, after its last step.
        """
        states = [value for state in optimizer.state.values() for value in state.values()]
        return {
            "forward_passes": self.forward_passes,
            "trainable_bytes": _bytes(self.trainables),
            "estimator_bytes": _bytes(self._perturbation.kept),
            "optimizer_bytes": _bytes([value for value in states if isinstance(value, Tensor)]),
        }

    def _whole(self, parts: Sequence[Tensor | None]) -> list[Tensor]:
        return [
            torch.zeros_like(trainable) if part is None else part
            for part, trainable in zip(parts, self.trainables, strict=True)
        ]

    def _refuse(self) -> NoReturn:
        raise ModelError(
            f"only gradients of plain losses are estimated (`finetune.update`: `{self._estimator.name}`), but the "
            "method asks for a loss of its own"
        )


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
