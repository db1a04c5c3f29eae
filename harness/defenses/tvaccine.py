"""T-Vaccine: Vaccine's perturbation in sampled safety-critical layers, with the other layers frozen.

Guozhi Liu, Weiwei Lin, Tiansheng Huang, Ruichao Mo, Qi Mu, Li Shen: "Targeted Vaccine: Safety Alignment for Large
Language Models against Harmful Fine-Tuning via Layer-wise Perturbation" (arXiv 2410.09760).

With ``h`` the harmful loss and ``e_l`` the attention outputs:

1. every ``probe_every`` steps: ``s_l = ||dh / de_l||`` on a few harmful examples, ``p_l = s_l / sum s``;
2. every ``draw_every`` steps: sample ``layers`` layers without replacement, layer ``l`` with probability ``p_l``;
3. in every step: Vaccine's gradient (see ``harness.mechanisms.activation_perturbation``), with the perturbation and its
   norm restricted to the sampled layers. The attention adapters of the other layers are excluded from the step: the
   optimizer neither updates nor decays them, and keeps their moments.

Activations of the layers that are not sampled are recomputed in the backward pass, which is how the method saves
memory. Two forward and backward passes per step, plus the recomputation of the layers above a sampled one that are not
sampled themselves, plus one pass on the harmful examples every ``probe_every`` steps.

As in the authors' code, adapters outside the attention blocks stay trainable in every layer.

Deviations from the authors' code: every layer that is not sampled is recomputed, in models of any depth and
architecture (theirs does so in patched models of more than 26 layers, except for the layer below each sampled one);
with gradient accumulation all micro-batches count (theirs drops all but the last); in a model with fewer than
``layers`` layers, all are sampled.

Fidelity: hand-computed only. The numbers are computed by hand in the tests; no vectors of the authors' trainer were
available.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.corpora.examples import Role
from harness.engine.checks import counts, positive
from harness.errors import Problem
from harness.mechanisms.frozen_parameters import without_gradient
from harness.protocols import DataRequirement

if TYPE_CHECKING:
    from harness.protocols import Batch, BatchProvider, Learner, Metrics


@final
@dataclass(frozen=True, kw_only=True)
class TVaccine:
    """Settings of T-Vaccine.

    Attributes:
        rho: L2 norm of the perturbation. 3 in the repository's README.
        layers: number of sampled layers. 8 in the repository for Llama, 5 for Qwen.
        draw_every: optimizer steps between two samples of layers.
        probe_every: optimizer steps between two computations of the probabilities.
        probe_rows: number of harmful examples for the probabilities; None uses all of the corpus.
        probe_batch_size: harmful examples per computation, over all processes; 1 in the repository.
    """

    name: ClassVar[str] = "tvaccine"
    version: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 0
    works_on_shards: ClassVar[bool] = True

    rho: float = 3.0
    layers: int = 8
    draw_every: int = 20
    probe_every: int = 200
    probe_rows: int | None = 200
    probe_batch_size: int = 1

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Harmful examples for the sampling probabilities."""
        return (DataRequirement(role=Role.HARMFUL, rows=self.probe_rows, batch_size=self.probe_batch_size),)

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        integers = ("layers", "draw_every", "probe_every", "probe_rows", "probe_batch_size")
        return [*positive(self, "rho"), *counts(self, *integers)]

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> TVaccineStep:  # noqa: ARG002
        """Start a run.

        Raises:
            ModelError: the attention blocks of the model cannot be found.
        """
        return TVaccineStep(self, learner, batches)


@final
class TVaccineStep:
    """One run of T-Vaccine; its state is the step, the probabilities and the sampled layers."""

    def __init__(self, settings: TVaccine, learner: Learner, batches: BatchProvider) -> None:
        """Find the layers, and the layer of each trainable parameter of an attention block."""
        from harness.mechanisms.activation_perturbation import ActivationPerturbation
        from harness.models.decoder import attention_blocks, layers

        self._settings = settings
        self._learner = learner
        self._batches = batches
        self._perturbation = ActivationPerturbation(learner, settings.rho)
        self._layers = layers(learner.module)
        layer_of = {id(p): layer for layer, b in enumerate(attention_blocks(learner.module)) for p in b.parameters()}
        self._layer_of = [layer_of.get(id(trainable)) for trainable in learner.trainables]
        self._steps = 0
        self._probabilities: list[float] = []
        self._sampled: list[int] = []

    def backward(self, batch: Batch) -> Metrics:
        """Write the gradient of the sampled layers; report Vaccine's metrics and the number of frozen parameters."""
        from harness.models.recompute import recomputed

        self._begin_step()
        active = [layer is None or layer in self._sampled for layer in self._layer_of]
        other_layers = (module for layer, module in enumerate(self._layers) if layer not in self._sampled)
        frozen = [each for each, is_active in zip(self._learner.trainables, active, strict=True) if not is_active]
        with recomputed(other_layers), without_gradient(frozen):
            perturbed = self._perturbation.gradient(batch, layers=self._sampled)
        gradient = [part if is_active else None for part, is_active in zip(perturbed.gradient, active, strict=True)]
        self._learner.set_gradient(gradient)
        return {**perturbed.metrics, "frozen": len(frozen)}

    def _begin_step(self) -> None:
        """Update the probabilities and the sampled layers if they are due."""
        if self._steps % self._settings.probe_every == 0:
            norms = self._perturbation.norms(self._batches.next(Role.HARMFUL))
            self._probabilities = (norms / norms.sum()).tolist()
        if self._steps % self._settings.draw_every == 0:
            self._sampled = self._sample_layers()
        self._steps += 1

    def _sample_layers(self) -> list[int]:
        import torch

        # A layer with zero gradient norm can still be sampled when no other layer is left.
        weights = torch.tensor(self._probabilities, dtype=torch.float64).clamp(min=1e-12)
        number = min(self._settings.layers, len(weights))
        rng = torch.Generator().manual_seed(self._batches.derive(TVaccine.name, str(self._steps)))
        return sorted(torch.multinomial(weights, number, replacement=False, generator=rng).tolist())

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps, the probabilities and the sampled layers."""
        return {"steps": self._steps, "probabilities": list(self._probabilities), "drawn": list(self._sampled)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._steps = int(state["steps"])
        self._probabilities = list(state["probabilities"])
        self._sampled = list(state["drawn"])
