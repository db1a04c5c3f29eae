"""Random Vaccine: alignment under a random perturbation of the attention outputs, a control for Vaccine.

The control named in Tiansheng Huang, Sihao Hu, Ling Liu: "Vaccine: Perturbation-aware Alignment for Large Language
Models against Harmful Fine-tuning Attack", NeurIPS 2024 (arXiv 2402.01109).

With ``e_l`` the attention outputs and ``Z_l`` independent standard normals of their shape, sampled anew at every step,
the gradient is that of ``f`` with ``e_l + rho * Z_l / ||Z||`` in place of ``e_l``, with one norm over all layers,
examples and positions of the global batch. At the same ``rho`` the perturbation has the norm of Vaccine's and differs
only in its direction. One forward and backward pass per step.

Deviations from the published code: it adds noise of variance ``rho`` to every entry, whose norm
``sqrt(rho * entries)`` exceeds Vaccine's by orders of magnitude; ``scale: variance`` reproduces that. Of the authors'
repositories only Lisa's runs the method; in Vaccine's, its name falls through to plain training. Padding has no noise.

Fidelity: hand-computed only. The step is computed by hand for a given noise, whose distribution is tested.
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
        rho: L2 norm of the perturbation with the scale ``norm``; variance of each entry with ``variance``.
        scale: ``norm`` matches the norm of Vaccine's perturbation; ``variance`` is the published form.
    """

    name: ClassVar[str] = "random_vaccine"
    version: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 0
    works_on_shards: ClassVar[bool] = True

    rho: float = 2.0
    scale: Literal["norm", "variance"] = "norm"

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Only the stage's own examples."""
        return ()

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return positive(self, "rho")

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> RandomVaccineStep:  # noqa: ARG002
        """Start a run.

        Raises:
            ModelError: the attention blocks of the model cannot be found.
        """
        return RandomVaccineStep(self, learner, batches.derive(self.name))


class Noise(NamedTuple):
    """The noise for all attention outputs, ``[layers, batch, time, hidden]``, and its L2 norm."""

    layers: Tensor
    norm: Tensor


@final
class RandomVaccineStep:
    """One run of random Vaccine; its state is the number of perturbations so far."""

    def __init__(self, settings: RandomVaccine, learner: Learner, seed: int) -> None:
        """Find the attention blocks."""
        from harness.models.decoder import attention_blocks

        self._settings = settings
        self._learner = learner
        self._seed = seed
        self._count = 0
        self._blocks = dict(enumerate(attention_blocks(learner.module)))

    def backward(self, batch: Batch) -> Metrics:
        """Write the gradient under the perturbation; report the loss under it and the perturbation's norm."""
        from harness.models.decoder import outputs

        pieces = self._learner.pieces(batch)
        current = pieces[0]
        sampled: list[Noise] = []

        def shift(layer: int, output: Tensor) -> Tensor:
            # Sampled at the first block, whose output has the width; for the whole batch, because of its global norm.
            if not sampled:
                sampled.append(self._perturbation(batch, output))
            return output + current.of(sampled[0].layers[layer]).to(output.dtype)

        def perturbed(piece: Piece) -> tuple[Tensor]:
            nonlocal current
            current = piece
            return (self._learner.loss(piece),)

        with outputs(self._blocks, shift):
            (loss,), gradient = self._learner.accumulate(pieces, perturbed)
        self._count += 1
        self._learner.set_gradient(gradient)
        return {"loss": loss, "perturbation_norm": sampled[0].norm}

    def _perturbation(self, batch: Batch, output: Tensor) -> Noise:
        from harness.mechanisms.row_noise import gaussian, global_norm, real_positions

        seed = derive(self._seed, str(self._count))
        positions, layers = real_positions(batch), len(self._blocks)
        noise = gaussian(positions, layers=layers, width=output.shape[-1], seed=seed, device=output.device)
        norm = global_norm(noise)
        factor = self._settings.rho / norm if self._settings.scale == "norm" else self._settings.rho**0.5
        return Noise(noise * factor, norm * factor)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of perturbations so far."""
        return {"drawn": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the number of perturbations."""
        self._count = int(state["drawn"])
