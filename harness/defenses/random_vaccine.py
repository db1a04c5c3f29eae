"""Random Vaccine: align under a random perturbation of the attention outputs. A control of Vaccine.

The control named in Tiansheng Huang, Sihao Hu, Ling Liu: "Vaccine: Perturbation-aware Alignment for Large Language
Models against Harmful Fine-tuning Attack", NeurIPS 2024 (arXiv 2402.01109).

With ``e_l`` the attention outputs and ``Z_l`` independent standard normals of their shape, drawn anew at every step:
the gradient given to the optimizer is that of ``f`` with ``e_l + rho * Z_l / ||Z||`` in place of ``e_l``, one norm over
all layers, rows and positions of the global batch. The perturbation is as long as Vaccine's at the same ``rho`` and
differs in its direction alone. One forward and backward pass per step.

Deviations from the published code: it adds noise of variance ``rho`` to every entry, whose length
``sqrt(rho * entries)`` exceeds Vaccine's by orders of magnitude; ``scale: variance`` does that. Of the authors'
repositories only Lisa's runs it at all: in Vaccine's the name falls through to plain training. Padding has no noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, final

from harness.engine.checks import positive
from harness.engine.seeding import derive
from harness.errors import Problem

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols import Batch, BatchProvider, DataRequirement, Learner, Metrics, Piece


@final
@dataclass(frozen=True, kw_only=True)
class RandomVaccine:
    """Settings of random Vaccine.

    Attributes:
        rho: length of the perturbation with the scale ``norm``; variance of each entry with ``variance``.
        scale: ``norm`` matches Vaccine's length; ``variance`` is the published form.
    """

    name: ClassVar[str] = "random_vaccine"
    version: ClassVar[int] = 1

    rho: float = 2.0
    scale: Literal["norm", "variance"] = "norm"

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Nothing besides the stage's own batches."""
        return ()

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return positive(self, "rho")

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> RandomVaccineStep:  # noqa: ARG002
        """Begin a run.

        Raises:
            ModelError: the attention blocks of the model cannot be found.
        """
        return RandomVaccineStep(self, learner, batches.derive(self.name))


class Noise(NamedTuple):
    """The shift of every layer's attention output, ``[layers, batch, time, hidden]``, and the length of all of it."""

    layers: Tensor
    norm: Tensor


@final
class RandomVaccineStep:
    """One run of random Vaccine. It remembers how many perturbations it has drawn."""

    def __init__(self, settings: RandomVaccine, learner: Learner, seed: int) -> None:
        """Find the attention blocks."""
        from harness.models.decoder import attention_blocks

        self._settings = settings
        self._learner = learner
        self._seed = seed
        self._drawn = 0
        self._blocks = dict(enumerate(attention_blocks(learner.module)))

    def backward(self, batch: Batch) -> Metrics:
        """Write the gradient under the perturbation; report the loss under it and the perturbation's length."""
        from harness.models.decoder import outputs

        pieces = self._learner.pieces(batch)
        present = pieces[0]
        drawn: list[Noise] = []

        def shift(place: int, output: Tensor) -> Tensor:
            # The first block tells the width; all rows and layers are drawn at once, as the length is over all of them.
            if not drawn:
                drawn.append(self._perturbation(batch, output.shape[-1]))
            return output + present.of(drawn[0].layers[place]).to(output.dtype)

        def perturbed(piece: Piece) -> tuple[Tensor]:
            nonlocal present
            present = piece
            return (self._learner.loss(piece),)

        with outputs(self._blocks, shift):
            (loss,), gradient = self._learner.accumulate(pieces, perturbed)
        self._drawn += 1
        self._learner.set_gradient(gradient)
        return {"loss": loss, "perturbation_norm": drawn[0].norm}

    def _perturbation(self, batch: Batch, width: int) -> Noise:
        from harness.mechanisms.row_noise import gaussian, length, real_positions

        seed = derive(self._seed, str(self._drawn))
        noise = gaussian(real_positions(batch), layers=len(self._blocks), width=width, seed=seed)
        norm = length(noise)
        factor = self._settings.rho / norm if self._settings.scale == "norm" else self._settings.rho**0.5
        return Noise(noise * factor, norm * factor)

    def state_dict(self) -> dict[str, Any]:
        """Return how many perturbations were drawn."""
        return {"drawn": self._drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the next perturbation."""
        self._drawn = int(state["drawn"])
