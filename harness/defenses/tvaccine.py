"""T-Vaccine: Vaccine's perturbation in the layers that matter most for safety, the other layers frozen.

Guozhi Liu, Weiwei Lin, Tiansheng Huang, Ruichao Mo, Qi Mu, Li Shen: "Targeted Vaccine: Safety Alignment for Large
Language Models against Harmful Fine-Tuning via Layer-wise Perturbation" (arXiv 2410.09760).

With ``h`` the harmful loss and ``e_l`` the attention outputs:

1. every ``probe_every`` steps: ``s_l = ||dh / de_l||`` on a few harmful rows, ``p_l = s_l / sum s``;
2. every ``draw_every`` steps: ``layers`` layers are drawn without replacement, layer ``l`` with probability ``p_l``;
3. in every step: Vaccine's gradient (see ``harness.mechanisms.activation_perturbation``) with the perturbation, and
   its norm, over the drawn layers only. The attention adapters of the other layers are left out of the step: the
   optimizer neither moves nor decays them, and keeps their moments.

The layers that were not drawn keep no activations but are computed again in the backward pass, which is the method's
saving of memory. Two forward and backward passes per step, plus this second forward through the layers that were not
drawn and lie above a drawn one, plus one pass on the harmful rows for each probe.

As in the authors' code, adapters outside of the attention blocks stay trainable in every layer.

Deviations from the authors' code: every layer that was not drawn is computed again, in a model of any depth and kind
(theirs does it in patched models of more than 26 layers, and spares the layer below each drawn one); gradient
accumulation is that of the whole batch instead of dropping all micro-batches but the last; a model with fewer than
``layers`` layers has all of them drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.corpora.examples import Role
from harness.engine.checks import counts, positive
from harness.errors import Problem
from harness.protocols import DataRequirement

if TYPE_CHECKING:
    from torch.nn import Parameter

    from harness.protocols import Batch, BatchProvider, Learner, Metrics


@final
@dataclass(frozen=True, kw_only=True)
class TVaccine:
    """Settings of T-Vaccine.

    Attributes:
        rho: length of the perturbation. 3 in the repository's README.
        layers: how many layers are drawn. 8 in the repository for Llama, 5 for Qwen.
        draw_every: optimizer steps between two draws of layers.
        probe_every: optimizer steps between two measurements of the probabilities.
        probe_rows: harmful rows that are probed with; None is all that the corpus offers.
        probe_batch_size: harmful rows of one probe, over all processes; 1 in the repository.
    """

    name: ClassVar[str] = "tvaccine"
    version: ClassVar[int] = 1

    rho: float = 3.0
    layers: int = 8
    draw_every: int = 20
    probe_every: int = 200
    probe_rows: int | None = 200
    probe_batch_size: int = 1

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """The harmful rows of the probes."""
        return (DataRequirement(role=Role.HARMFUL, rows=self.probe_rows, batch_size=self.probe_batch_size),)

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        whole = ("layers", "draw_every", "probe_every", "probe_rows", "probe_batch_size")
        return [*positive(self, "rho"), *counts(self, *whole)]

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> TVaccineStep:  # noqa: ARG002
        """Begin a run.

        Raises:
            ModelError: the attention blocks of the model cannot be found.
        """
        return TVaccineStep(self, learner, batches)


@final
class TVaccineStep:
    """One run of T-Vaccine. It remembers the step, the probabilities and the drawn layers."""

    def __init__(self, settings: TVaccine, learner: Learner, batches: BatchProvider) -> None:
        """Find the layers, and which of them each trainable of an attention block belongs to."""
        from harness.mechanisms.activation_perturbation import Perturbation
        from harness.models.decoder import attention_blocks, layers

        self._settings = settings
        self._learner = learner
        self._batches = batches
        self._perturbation = Perturbation(learner, settings.rho)
        self._layers = layers(learner.module)
        home = {id(p): place for place, b in enumerate(attention_blocks(learner.module)) for p in b.parameters()}
        self._homes = [home.get(id(trainable)) for trainable in learner.trainables]
        self._steps = 0
        self._probabilities: list[float] = []
        self._drawn: list[int] = []

    def backward(self, batch: Batch) -> Metrics:
        """Write the gradient of the drawn layers; report as Vaccine does, and how many trainables were frozen."""
        from harness.models.recompute import recomputed

        self._begin()
        moving = [home is None or home in self._drawn for home in self._homes]
        spared = (layer for place, layer in enumerate(self._layers) if place not in self._drawn)
        frozen = [each for each, moves in zip(self._learner.trainables, moving, strict=True) if not moves]
        with recomputed(spared), _without_gradient(frozen):
            perturbed = self._perturbation.gradient(batch, places=self._drawn)
        self._learner.set_gradient([g if moves else None for g, moves in zip(perturbed.gradient, moving, strict=True)])
        return {**perturbed.metrics, "frozen": len(frozen)}

    def _begin(self) -> None:
        """Begin an optimizer step: measure and draw if it is time."""
        if self._steps % self._settings.probe_every == 0:
            norms = self._perturbation.norms(self._batches.next(Role.HARMFUL))
            self._probabilities = (norms / norms.sum()).tolist()
        if self._steps % self._settings.draw_every == 0:
            self._drawn = self._draw()
        self._steps += 1

    def _draw(self) -> list[int]:
        import torch

        # A layer that the probe did not reach may still be drawn when no other is left.
        weights = torch.tensor(self._probabilities, dtype=torch.float64).clamp(min=1e-12)
        number = min(self._settings.layers, len(weights))
        chance = torch.Generator().manual_seed(self._batches.derive(TVaccine.name, str(self._steps)))
        return sorted(torch.multinomial(weights, number, replacement=False, generator=chance).tolist())

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer steps begun, the probabilities and the drawn layers."""
        return {"steps": self._steps, "probabilities": list(self._probabilities), "drawn": list(self._drawn)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        self._steps = int(state["steps"])
        self._probabilities = list(state["probabilities"])
        self._drawn = list(state["drawn"])


@contextmanager
def _without_gradient(parameters: Sequence[Parameter]) -> Iterator[None]:
    """Spare passes the gradients of some parameters, and everything that only these need."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_()
