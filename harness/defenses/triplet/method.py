"""Triplet: harmful states are gathered around their mean and away from where they were, benign ones stay and avoid it.

Samuel Simko, Mrinmaya Sachan, Bernhard Schölkopf, Zhijing Jin: "Improving Large Language Model Safety with Contrastive
Representation Learning", EMNLP 2025 (arXiv 2506.11938); TamperBench runs it as CRL. It refines circuit breakers.

Let ``h_j`` be the hidden state after j layers at a position of an answer, ``h_j^0`` that of the model before the
training, ``c_j`` the mean of ``h_j`` over the positions of the harmful batch, and ``d`` the cosine distance, 1 - cos.
The loss is ``alpha * S + beta * U + gamma * K``:

- ``S``, the mean over the positions of benign answers and over all states, embeddings included, of
  ``max(0, ||h_j - h_j^0|| - d(h_j, c_j) + benign_margin)``;
- ``U``, the mean over the positions of harmful answers and over ``layers`` of
  ``max(0, d(h_j, c_j) - d(h_j, h_j^0) + harmful_margin)``;
- ``K``, the Kullback-Leibler divergence from the model before the training to the present one on benign answers, both
  at the temperature 2 and times its square, summed over the positions of an example, mean over examples.

The gradient also passes through ``c_j``, which depends on the whole harmful batch: see
``harness.defenses.triplet.harmful``. With margins at their defaults no term of ``U`` is ever zero, since a cosine
distance is at most 2.

Costs per step: on the benign batch a forward pass without gradient, one with it and a backward pass; on the harmful one
a forward pass without gradient more; and plain training's on the refusals with ``refusals: learn``.

The authors begin with a model that refuses. With ``refusals: learn`` the loss of the alignment on its refusals is
added, so that the model learns to refuse in the same run; with ``retain``, as published, refusals count as benign
answers in ``S`` and ``K``.

Deviations from the authors' code: ``K`` is taken at the positions of answers (theirs: of whole texts from a third set);
the embeddings, which are not trained, count in the mean of ``S`` without their constant; adversarial hard negatives
(``attack``, off in their script) are not implemented.

Fidelity: hand-computed only. Equations, margins, weights and layers are those of the authors' code and its script for
Llama-3 (samuelsimko/crl-llm-defense 3e177d2, code/methods/triplet/trainer.py and code/train.sh). The port in
TamperBench (criticalml-uw/TamperBench, whitebox/defenses/crl) names other values as the paper's (alpha 0.5, beta 0.4,
gamma 0.9, margins 500 and 1,500 of Euclidean distances); the paper's own table was not available.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, final

from harness.corpora.examples import Role
from harness.engine.checks import counts, layer_numbers, not_negative
from harness.errors import ModelError, Problem
from harness.mechanisms.reference_weights import ReferenceWeights
from harness.protocols import DataRequirement
from harness.training.gradients import add_scaled

if TYPE_CHECKING:
    from torch import Tensor

    from harness.mechanisms.hidden_states import Kept
    from harness.protocols import Batch, BatchProvider, Gradient, Learner, Metrics, Piece

LAYERS = tuple(number / 32 for number in range(20, 31))
"""The published layers, as shares of the depth."""
TEMPERATURE = 2.0


@final
@dataclass(frozen=True, kw_only=True)
class Triplet:
    """Settings of the triplet defense.

    Attributes:
        alpha: weight of the loss of benign states.
        beta: weight of the loss of harmful states.
        gamma: weight of the divergence of predictions.
        benign_margin: by how much a benign state shall be closer to where it was than to the harmful mean.
        harmful_margin: by how much a harmful state shall be closer to the harmful mean than to where it was.
        layers: after how many layers harmful states count; null is the published 20 to 30 of 32, as shares.
        refusals: ``learn`` trains on the refusals of the alignment; ``retain`` counts them as benign, as published.
        harmful_rows: number of harmful examples available to the defender; None uses all of the corpus.
        harmful_batch_size: harmful examples per step.
        benign_rows: number of benign examples; None uses all.
        benign_batch_size: benign examples per step.
    """

    name: ClassVar[str] = "triplet"
    version: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 4
    works_on_shards: ClassVar[bool] = True

    alpha: float = 0.5
    beta: float = 0.6
    gamma: float = 0.7
    benign_margin: float = 2.0
    harmful_margin: float = 3.0
    layers: tuple[int, ...] | None = None
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
            *not_negative(self, "alpha", "beta", "gamma", "benign_margin", "harmful_margin"),
            *counts(self, "harmful_rows", "harmful_batch_size", "benign_rows", "benign_batch_size"),
            *layer_numbers(self, "layers"),
        ]

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> TripletStep:  # noqa: ARG002
        """Start a run.

        Raises:
            ModelError: the model has too few layers for ``layers``, or they cannot be found.
        """
        return TripletStep(self, learner, batches)


class BenignTerms(NamedTuple):
    """The terms of a step on benign answers.

    Attributes:
        metrics: ``S`` and ``K``, without their weights.
        gradient: of both, with their weights.
        pulls: the gradient of ``alpha * S`` with respect to ``c_j`` of every state.
        loss: on the last batch.
    """

    metrics: dict[str, Tensor]
    gradient: Gradient
    pulls: list[Tensor]
    loss: Tensor


@final
class TripletStep:
    """One run of the triplet defense; its state is the initial parameters."""

    def __init__(self, settings: Triplet, learner: Learner, batches: BatchProvider) -> None:
        """Copy the initial parameters and find the layers.

        Raises:
            ModelError: the model has too few layers for ``layers``, or they cannot be found.
        """
        from harness.mechanisms.hidden_states import HiddenStates, at_depth

        self._settings = settings
        self._learner = learner
        self._batches = batches
        self._start = ReferenceWeights(learner)
        self._states = HiddenStates(learner)
        depth = self._states.depth
        self._all = range(1, depth + 1)
        self._layers = at_depth(LAYERS, depth) if settings.layers is None else list(settings.layers)
        if max(self._layers) > depth:
            raise ModelError(
                f"`triplet` gathers the states after {max(self._layers)} layers, but the model has {depth}; set "
                "`layers` to numbers up to that"
            )

    def backward(self, batch: Batch) -> Metrics:
        """Write the combined gradient; report the ``loss`` on the refusals, ``S``, ``U``, ``K`` and gradients' norms.

        ``triplet_gradient_norm`` includes the weights, and all of the three terms.
        """
        from harness.defenses.triplet.harmful import HarmfulStates

        settings = self._settings
        benign = [self._batches.next(Role.BENIGN), *([batch] if settings.refusals == "retain" else [])]
        drawn = self._batches.next(Role.HARMFUL)
        harmful = HarmfulStates(self._learner, self._start, self._states, drawn, self._layers)
        kept = self._keep(benign, harmful.centers)
        gathered = harmful.gradient(self._gather, settings.beta, kept.pulls)
        gradient, loss = kept.gradient, kept.loss
        add_scaled(gradient, gathered.gradient, 1.0)
        norm = self._learner.norm(gradient)
        if settings.refusals == "learn":
            loss, learned = self._learner.gradient(batch)
            add_scaled(gradient, learned, 1.0)
        self._learner.set_gradient(gradient)
        return {"loss": loss, **kept.metrics, "harmful_triplet": gathered.loss, "triplet_gradient_norm": norm}

    def _keep(self, batches: Sequence[Batch], means: Sequence[Tensor]) -> BenignTerms:
        """Return ``S`` and ``K`` on batches with benign answers, given ``c_j`` of every state."""
        import torch

        from harness.mechanisms.hidden_states import answer_positions, total
        from harness.training.distributed import all_reduce_sum, total_on_device
        from harness.training.learner import mean_loss

        settings = self._settings
        centers = [center.detach().requires_grad_() for center in means]
        cut = [(answer_positions(batch), self._learner.pieces(batch)) for batch in batches]
        count = torch.stack([total(positions, pieces) for positions, pieces in cut]).sum() * (len(centers) + 1)
        rows = sum(int(positions.any(dim=1).sum()) for positions, _ in cut)
        examples = total_on_device(rows, centers[0].device).clamp(min=1)
        pulls = [torch.zeros_like(center) for center in means]
        sums: list[Tensor] = []
        gradient: Gradient = []
        for positions, pieces in cut:

            def share(piece: Piece, positions: Tensor = positions) -> tuple[Tensor, ...]:
                with self._start.at_reference():
                    before = self._states.at(piece, positions, self._all)
                now = self._states.at(piece, positions, self._all)
                states = self._benign(now, before, centers) / count
                for pull, part in zip(pulls, torch.autograd.grad(states, centers, retain_graph=True), strict=True):
                    pull.add_(part, alpha=settings.alpha)
                divergence = _divergence(before.prediction.logits, now.prediction.logits) / examples
                weighted = settings.alpha * states + settings.gamma * divergence
                return weighted, states.detach(), divergence.detach(), mean_loss(now.prediction).detach()

            (_, *found, loss), parts = self._learner.accumulate(pieces, share)
            sums.append(torch.stack(found))
            gradient = [one + other for one, other in zip(gradient, parts, strict=True)] if gradient else parts
        all_reduce_sum(*pulls)
        states, divergence = torch.stack(sums).sum(dim=0)
        return BenignTerms({"benign_triplet": states, "divergence": divergence}, gradient, pulls, loss)

    def _benign(self, now: Kept, before: Kept, centers: Sequence[Tensor]) -> Tensor:
        """Return the sum of ``S`` over the positions of a micro-batch and all states."""
        import torch
        from torch.nn.functional import relu

        from harness.mechanisms.hidden_states import norms

        terms = []
        for number, center in zip(self._all, centers, strict=True):
            stayed = norms(now.states[number] - before.states[number])
            terms.append(relu(stayed - _distance(now.states[number], center) + self._settings.benign_margin).sum())
        return torch.stack(terms).sum()

    def _gather(self, now: Tensor, before: Tensor, center: Tensor) -> Tensor:
        """Return the terms of ``U`` at positions of harmful answers, ``[positions]``."""
        from torch.nn.functional import relu

        return relu(_distance(now, center) - _distance(now, before) + self._settings.harmful_margin)

    def state_dict(self) -> dict[str, Any]:
        """Return the initial parameters."""
        return {"start": self._start.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._start.load_state_dict(state["start"])


def _distance(states: Tensor, others: Tensor) -> Tensor:
    """Return the cosine distances, ``[positions]``, of ``[positions, hidden]`` from as many others, or from one."""
    from torch.nn.functional import normalize

    return 1 - (normalize(states, dim=-1) * normalize(others, dim=-1)).sum(dim=-1)


def _divergence(before: Tensor, now: Tensor) -> Tensor:
    """Return the divergence of predictions, ``[positions, vocabulary]``, summed over the positions."""
    from torch.nn.functional import kl_div, log_softmax

    first, second = (log_softmax(logits.float() / TEMPERATURE, dim=-1) for logits in (before, now))
    return kl_div(second, first, reduction="sum", log_target=True) * TEMPERATURE**2
