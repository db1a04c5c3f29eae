"""Interfaces of zeroth-order training: gradients estimated from forward passes, between a method and the optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from harness.protocols.learner import Named

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols.learner import Gradient


class Estimator(Named, Protocol):
    """Frozen settings of an estimator of gradients.

    In a step the loss ``L`` is taken at ``w + epsilon * Z`` and ``w - epsilon * Z`` for a random direction ``Z``, which
    gives the scalar ``kappa = (L(w + epsilon Z) - L(w - epsilon Z)) / (2 epsilon)``.
    """

    @property
    def epsilon(self) -> float:
        """Length of the step along a direction."""
        ...

    @property
    def keeps_moments(self) -> bool:
        """Whether what the optimizer is given depends on earlier steps; it then takes one gradient per step and SGD."""
        ...

    def start(self, trainables: Sequence[Tensor], seed: int) -> Perturbation:
        """Start a run.

        Args:
            trainables: the parameters that are trained, of which shape and device are read.
            seed: the seed from which all random numbers of the run derive, the same on every process.
        """
        ...


class Perturbation(Protocol):
    """The state of an estimator in one training run."""

    @property
    def kept(self) -> Sequence[Tensor]:
        """The tensors that are kept between two steps."""
        ...

    def direction(self, step: int) -> Gradient:
        """Return the direction ``Z`` of a step, the same at every call."""
        ...

    def gradient(self, step: int, direction: Sequence[Tensor | None], kappa: Tensor) -> list[Tensor | None]:
        """Return what the optimizer is given in place of the gradient.

        Args:
            step: the optimizer steps taken before.
            direction: the result of ``direction``, None where a parameter is frozen in this step. The result is None
                there too, and moments of such a parameter stay as they are.
            kappa: the measured difference quotient, a scalar.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what does not follow from the seed and the step, for resuming."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        ...


@runtime_checkable
class AsksForGradients(Protocol):
    """Optional: settings of a training method that can run on estimated gradients.

    All that it asks of the model are gradients of plain losses at the current weights (``Learner.gradient``), which it
    combines linearly; it may add terms of its own that need no forward pass, and freeze parameters.
    """

    @property
    def gradients_per_step(self) -> int:
        """The most gradients that the method asks for in a step."""
        ...
