"""Circuit breakers: the states of harmful text are turned away from where they were, those of other text are held.

Andy Zou, Long Phan, Justin Wang, Derek Duenas, Maxwell Lin, Maksym Andriushchenko, Rowan Wang, Zico Kolter, Matt
Fredrikson, Dan Hendrycks: "Improving Alignment and Robustness with Circuit Breakers", NeurIPS 2024 (arXiv 2406.04313),
"representation rerouting".

Let ``h_j`` be the hidden state after j layers and ``h_j^0`` that of the model before the training. With t the number of
the step, counted from 1, and T ``ramp_steps``, the loss is ``alpha * (t / T * R + (1 - t / T) * B)``:

- ``R``, the mean of ``||h_j - h_j^0||`` over the positions of benign text and over all states, embeddings included;
- ``B``, the mean of ``max(0, cos(h_j, h_j^0))`` over the positions of harmful text, prompt and answer, and ``layers``.

A forward pass without gradient and one with it, and a backward pass, on the benign and on the harmful batch.

The authors begin with a model that refuses; here the slot begins with any base. With ``refusals: learn`` the loss of
the alignment, on its refusals, is added, so that the model learns to refuse in the same run. With ``retain``, as
published, the refusals join the benign text in ``R``, and nothing teaches them. At the start every cosine is 1, its
maximum, so the gradient of ``B`` is rounding, which AdamW scales up: with ``retain`` the first step has no direction.

Deviations from the authors' code: padding does not count in ``R`` (theirs averages over it, as zeros); the adapter is
trained in all layers (theirs up to the highest of ``layers``); ``T`` is twice the number of steps, as 300 is of their
150; benign text is that of the corpus (theirs: UltraChat, for Llama-3 also XSTest and refusals).

Fidelity: hand-computed only. The equations are those of the authors' trainer, ``lorra_circuit_breaker.py``, read in two
copies of it (ks-fahad/CircuitBreakers, and the reimplementation in samuelsimko/crl-llm-defense 3e177d2), as their own
repository was not available; ``alpha`` 10 is that of their script for Llama-3, 5 that for Mistral, second-hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from harness.corpora.examples import Role
from harness.engine.checks import counts, layer_numbers, not_negative
from harness.errors import ModelError, Problem
from harness.mechanisms.reference_weights import ReferenceWeights
from harness.protocols import DataRequirement
from harness.training.gradients import add_scaled

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols import Batch, BatchProvider, Gradient, Learner, Metrics, Piece

LAYERS = (10 / 32, 20 / 32)
"""The published layers, as shares of the depth."""


@final
@dataclass(frozen=True, kw_only=True)
class CircuitBreakers:
    """Settings of circuit breakers.

    Attributes:
        alpha: weight of both terms.
        layers: after how many layers states are turned away; null is the published 10 and 20 of 32, as shares.
        ramp_steps: steps after which only ``R`` would be left; null is twice the number of steps.
        refusals: ``learn`` trains on the refusals of the alignment; ``retain`` only holds their states, as published.
        harmful_rows: number of harmful examples available to the defender; None uses all of the corpus.
        harmful_batch_size: harmful examples per step.
        benign_rows: number of benign examples; None uses all.
        benign_batch_size: benign examples per step.
    """

    name: ClassVar[str] = "circuit_breakers"
    version: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 4
    works_on_shards: ClassVar[bool] = True

    alpha: float = 10.0
    layers: tuple[int, ...] | None = None
    ramp_steps: int | None = None
    refusals: Literal["learn", "retain"] = "learn"
    harmful_rows: int | None = None
    harmful_batch_size: int = 16
    benign_rows: int | None = None
    benign_batch_size: int = 16

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Harmful and benign examples, sampled."""
        return (
            DataRequirement(role=Role.HARMFUL, rows=self.harmful_rows, batch_size=self.harmful_batch_size),
            DataRequirement(role=Role.BENIGN, rows=self.benign_rows, batch_size=self.benign_batch_size),
        )

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return [
            *not_negative(self, "alpha"),
            *counts(self, "ramp_steps", "harmful_rows", "harmful_batch_size", "benign_rows", "benign_batch_size"),
            *layer_numbers(self, "layers"),
        ]

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> CircuitBreakersStep:
        """Start a run.

        Raises:
            ModelError: the model has too few layers for ``layers``, or they cannot be found.
        """
        return CircuitBreakersStep(self, learner, batches, total_steps)


@final
class CircuitBreakersStep:
    """One run of circuit breakers; its state is the initial parameters."""

    def __init__(self, settings: CircuitBreakers, learner: Learner, batches: BatchProvider, total_steps: int) -> None:
        """Copy the initial parameters and find the layers.

        Raises:
            ModelError: the model has too few layers for ``layers``, or they cannot be found.
        """
        from harness.mechanisms.hidden_states import HiddenStates, at_depth

        self._settings = settings
        self._learner = learner
        self._batches = batches
        self._ramp_steps = settings.ramp_steps or 2 * total_steps
        self._start = ReferenceWeights(learner)
        self._states = HiddenStates(learner)
        self._layers = at_depth(LAYERS, self._states.depth) if settings.layers is None else settings.layers
        if max(self._layers) > self._states.depth:
            raise ModelError(
                f"`circuit_breakers` turns away the states after {max(self._layers)} layers, but the model has "
                f"{self._states.depth}; set `layers` to numbers up to that"
            )

    def backward(self, batch: Batch) -> Metrics:
        """Write the combined gradient; report ``loss`` on the refusals, ``R``, ``B`` and the norms of their gradients.

        The norms include the weights.
        """
        progress = min((self._learner.steps_taken + 1) / self._ramp_steps, 1.0)
        hold, turn = self._settings.alpha * progress, self._settings.alpha * (1 - progress)
        benign = self._batches.next(Role.BENIGN)
        if self._settings.refusals == "learn":
            loss, gradient = self._learner.gradient(batch)
            _, distance, held = self._distance([benign])
        else:
            loss, distance, held = self._distance([benign, batch])
            gradient = [0 * part for part in held]
        cosine, turned = self._cosine(self._batches.next(Role.HARMFUL))
        norms = {
            "retain_gradient_norm": hold * self._learner.norm(held),
            "reroute_gradient_norm": turn * self._learner.norm(turned),
        }
        add_scaled(gradient, held, hold)
        add_scaled(gradient, turned, turn)
        self._learner.set_gradient(gradient)
        return {"loss": loss, "retain_distance": distance, "reroute_cosine": cosine, **norms}

    def _distance(self, batches: Sequence[Batch]) -> tuple[Tensor, Tensor, Gradient]:
        """Return the loss on the last batch, ``R`` over all of them, and the gradient of ``R``."""
        import torch

        from harness.mechanisms.hidden_states import norms, text_positions, total
        from harness.training.learner import mean_loss

        states, numbers = self._states, range(1, self._states.depth + 1)
        cut = [(text_positions(batch), self._learner.pieces(batch)) for batch in batches]
        count = torch.stack([total(positions, pieces) for positions, pieces in cut]).sum() * (states.depth + 1)
        sums: list[Tensor] = []
        gradient: Gradient = []
        for positions, pieces in cut:

            def share(piece: Piece, positions: Tensor = positions) -> tuple[Tensor, Tensor]:
                with self._start.at_reference():
                    before = states.at(piece, positions, numbers).states
                now, prediction = states.at(piece, positions, numbers)
                moved = torch.stack([norms(now[number] - before[number]).sum() for number in numbers]).sum()
                return moved / count, mean_loss(prediction).detach()

            (distance, loss), parts = self._learner.accumulate(pieces, share)
            sums.append(distance)
            gradient = [one + other for one, other in zip(gradient, parts, strict=True)] if gradient else parts
        return loss, torch.stack(sums).sum(), gradient

    def _cosine(self, harmful: Batch) -> tuple[Tensor, Gradient]:
        """Return ``B`` on a harmful batch, and its gradient."""
        import torch
        from torch.nn.functional import cosine_similarity, relu

        from harness.mechanisms.hidden_states import text_positions, total

        positions, pieces = text_positions(harmful), self._learner.pieces(harmful)
        count = total(positions, pieces) * len(self._layers)

        def share(piece: Piece) -> tuple[Tensor]:
            with self._start.at_reference():
                before = self._states.at(piece, positions, self._layers).states
            now = self._states.at(piece, positions, self._layers).states
            aligned = [relu(cosine_similarity(now[layer], before[layer], dim=-1)).sum() for layer in self._layers]
            return (torch.stack(aligned).sum() / count,)

        (cosine,), gradient = self._learner.accumulate(pieces, share)
        return cosine, gradient

    def state_dict(self) -> dict[str, Any]:
        """Return the initial parameters."""
        return {"start": self._start.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._start.load_state_dict(state["start"])
