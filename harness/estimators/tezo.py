"""TeZO: fine-tuning with forward passes only, along directions of low rank whose factors are drawn once.

Yan Sun, Tiansheng Huang, Liang Ding, Li Shen, Dacheng Tao: "TeZO: Empowering the Low-Rankness on the Temporal Dimension
in the Zeroth-Order Optimization for Fine-tuning LLMs" (arXiv 2501.19057).

For a matrix of shape ``[m, n]`` the factors ``U [m, r]`` and ``V [n, r]`` of a run are standard normal, and in step
``t`` so is ``tau [r]``: ``Z = U diag(tau) V^T``. One scalar for all layers,
``kappa = (L(W + epsilon Z) - L(W - epsilon Z)) / (2 epsilon)``, is measured with two forward passes. By ``form``, the
optimizer is given

- ``sgd``: ``kappa Z``;
- ``momentum``: ``M = U diag(mean) V^T`` with ``mean <- beta1 mean + (1 - beta1) kappa tau``;
- ``adam``: ``M / sqrt(V + stabilizer)``, with ``V = (U o U) diag(square) (V o V)^T`` and
  ``square <- beta2 square + (1 - beta2) (kappa tau)^2``.

So moments are ``r`` numbers a matrix. Scalars and vectors are perturbed by dense normal numbers and have dense moments.
``sgd`` and ``momentum`` never leave ``W_0 + U diag(c) V^T`` and are MeZO, with or without momentum, on the ``r``
numbers ``c``; only ``adam`` leaves this space. The mean of ``kappa Z`` over ``U``, ``V`` and ``tau`` is ``r`` times the
gradient; the learning rate absorbs the factor.

Deviations: the paper chooses a rank for each layer from the spectra of the weights; here ``rank`` is one number for all
matrices. It is not known whether the authors correct the bias of the moments, which is not done here, and where they
add the stabilizer. On the factors of LoRA the directions are no smaller than the factors; there TeZO saves nothing.

Fidelity: equations second-hand. There is no public code, and the paper's text was not available: the equations are
those of public reviews and of another library, the steps of all forms are computed by hand in the tests. ``rank``, the
betas and epsilon are the harness's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, final

from harness.engine.checks import below_one, counts, not_negative, positive
from harness.errors import Problem
from harness.mechanisms.random_directions import Normals, matrix_shape, scaled

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols import Gradient


@final
@dataclass(frozen=True, kw_only=True)
class TeZO:
    """Settings of TeZO.

    Attributes:
        epsilon: length of the step along a direction, rho in the paper.
        rank: number of rank-one terms of a direction, r.
        form: what is done with estimates: nothing, a mean, or a mean over the root of a mean square.
        beta1: decay rate of the mean.
        beta2: decay rate of the mean square.
        stabilizer: added to the mean square under the root.
    """

    name: ClassVar[str] = "tezo"
    version: ClassVar[int] = 1

    epsilon: float = 1e-3
    rank: int = 8
    form: Literal["sgd", "momentum", "adam"] = "adam"
    beta1: float = 0.9
    beta2: float = 0.99
    stabilizer: float = 1e-8

    @property
    def keeps_moments(self) -> bool:
        """Whether earlier steps count: in all forms but ``sgd``."""
        return self.form != "sgd"

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return [
            *positive(self, "epsilon"),
            *counts(self, "rank"),
            *below_one(self, "beta1", "beta2"),
            *not_negative(self, "stabilizer"),
        ]

    def start(self, trainables: Sequence[Tensor], seed: int) -> FixedFactors:
        """Start a run: draw the factors."""
        normals = Normals(seed, "factors")
        factors: list[Factors | None] = []
        for trainable in trainables:
            shape = matrix_shape(trainable)
            drawn = shape and Factors(*(normals.draw((side, self.rank), trainable) for side in shape))
            factors.append(drawn)
        return FixedFactors(self, trainables, factors, seed)


class Factors(NamedTuple):
    """The factors of a matrix's directions.

    Attributes:
        u: ``[m, r]``.
        v: ``[n, r]``.
    """

    u: Tensor
    v: Tensor


@final
class FixedFactors:
    """One run of TeZO; its state is the moments.

    Args:
        settings: the settings.
        trainables: the parameters that are trained.
        factors: the factors of each, None for a scalar or a vector.
        seed: the seed of the run.
    """

    def __init__(
        self, settings: TeZO, trainables: Sequence[Tensor], factors: Sequence[Factors | None], seed: int
    ) -> None:
        """Start with moments of zero."""
        self._settings = settings
        self._trainables = trainables
        self._factors = factors
        self._seed = seed
        shapes = [trainable.shape if own is None else own.u.shape[1:] for trainable, own in self._pairs()]
        moments = {"momentum": ("mean",), "adam": ("mean", "square")}.get(settings.form, ())
        self._moments = {
            name: [each.new_zeros(shape) for shape, each in zip(shapes, trainables, strict=True)] for name in moments
        }

    @property
    def kept(self) -> Sequence[Tensor]:
        """The factors and the moments."""
        factors = [factor for own in self._factors if own is not None for factor in own]
        return [*factors, *(moment for moments in self._moments.values() for moment in moments)]

    def direction(self, step: int) -> Gradient:
        """Return ``Z`` of a step."""
        return [self._spread(place, tau) for place, tau in enumerate(self._taus(step))]

    def gradient(self, step: int, direction: Sequence[Tensor | None], kappa: Tensor) -> list[Tensor | None]:
        """Return ``kappa Z``, ``M`` or ``M / sqrt(V + stabilizer)``."""
        settings = self._settings
        if settings.form == "sgd":
            return scaled(direction, kappa)
        result: list[Tensor | None] = []
        for place, (tau, part) in enumerate(zip(self._taus(step), direction, strict=True)):
            if part is None:
                result.append(None)
                continue
            mean = self._moments["mean"][place].mul_(settings.beta1).add_((1 - settings.beta1) * kappa * tau)
            moved = self._spread(place, mean)
            if settings.form == "adam":
                square = self._moments["square"][place].mul_(settings.beta2)
                square.add_((1 - settings.beta2) * (kappa * tau).square())
                moved = moved / (self._spread(place, square, power=2) + settings.stabilizer).sqrt()
            result.append(moved)
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return the moments; the factors follow from the seed."""
        return {"moments": self._moments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        for name, moments in self._moments.items():
            for own, stored in zip(moments, state["moments"][name], strict=True):
                own.copy_(stored)

    def _pairs(self) -> list[tuple[Tensor, Factors | None]]:
        return list(zip(self._trainables, self._factors, strict=True))

    def _taus(self, step: int) -> Gradient:
        normals = Normals(self._seed, str(step))
        return [
            normals.draw(trainable.shape if own is None else own.u.shape[1:], trainable)
            for trainable, own in self._pairs()
        ]

    def _spread(self, place: int, weights: Tensor, *, power: int = 1) -> Tensor:
        """Return ``U diag(weights) V^T`` in the parameter's shape, entries of the factors raised to a power."""
        own, trainable = self._factors[place], self._trainables[place]
        if own is None:
            return weights
        return ((own.u**power * weights) @ (own.v**power).T).view(trainable.shape)
