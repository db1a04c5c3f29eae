"""SafeGrad: fine-tuning without the part of the user's gradient that opposes a safety gradient.

Biao Yi, Jiahao Li, Baolei Zhang, Lihai Nie, Tong Li, Tiansheng Huang, Zheli Liu: "Gradient Surgery for Safe LLM
Fine-Tuning" (arXiv 2508.07172).

With ``p_0`` the next-token distribution of the aligned model, ``g_u`` the gradient of the user's loss and ``g_a`` that
of ``mean KL(p_0 || p_w)`` over the answer tokens of the defender's refusals, each over all trainable parameters:

1. if ``<g_u, g_a> < 0``, then ``g_u <- g_u - <g_u, g_a> / ||g_a||^2 * g_a``;
2. the gradient passed to the optimizer is ``g_u + rho * g_a``.

Three forward passes (one of them without a gradient) and two backward passes per step. The test and the projection are
made on the gradients of the whole step, whatever the micro-batches. In the first step the model is the aligned one and
``g_a`` is zero, so the step is that of plain training (without dropout in the adapter); the gradient in the logits is
computed as ``p_w - p_0``, which is exactly zero there, because a direction made of rounding errors could be projected
on as well as any other.

The projection is of the gradient, not of the update: AdamW divides each entry by its own scale, so the update may still
have a component against ``g_a``.

Deviations: the aligned predictions are computed by the same model with its initial trainable parameters instead of by a
second model.

Fidelity: equations second-hand. They are those of a public re-implementation that names the paper's Algorithm 1
(SafeTune, commit 87deac3), as is ``rho``; neither the paper's text nor the authors' code was available. The projection
and the whole step are computed by hand in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.corpora.examples import Role
from harness.engine.checks import counts, not_negative
from harness.errors import Problem
from harness.mechanisms.reference_weights import ReferenceWeights
from harness.protocols import DataRequirement
from harness.training.gradients import inner_product

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols import Batch, BatchProvider, Gradient, Learner, Metrics, Piece


@final
@dataclass(frozen=True, kw_only=True)
class SafeGrad:
    """Settings of SafeGrad.

    Attributes:
        rho: weight of the safety gradient.
        safety_rows: number of refusals available to the defender; None uses all of the corpus.
        safety_batch_size: refusals per step, over all processes.
    """

    name: ClassVar[str] = "safegrad"
    version: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 2
    works_on_shards: ClassVar[bool] = True

    rho: float = 1.0
    safety_rows: int | None = None
    safety_batch_size: int = 10

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """The defender's refusals."""
        return (DataRequirement(role=Role.REFUSAL, rows=self.safety_rows, batch_size=self.safety_batch_size),)

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return [*not_negative(self, "rho"), *counts(self, "safety_rows", "safety_batch_size")]

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> SafeGradStep:  # noqa: ARG002
        """Start a run."""
        return SafeGradStep(self, learner, batches)


@final
class SafeGradStep:
    """One run of SafeGrad; its state is the initial parameters."""

    def __init__(self, settings: SafeGrad, learner: Learner, batches: BatchProvider) -> None:
        """Copy the initial parameters."""
        self._settings = settings
        self._learner = learner
        self._batches = batches
        self._start = ReferenceWeights(learner)

    def backward(self, batch: Batch) -> Metrics:
        """Write the combined gradient; report the user's ``loss``, the divergence, both norms and ``conflict``.

        ``conflict`` is 1 in a step whose gradients oppose each other, so its mean is the share of such steps.
        """
        loss, gradient = self._learner.gradient(batch)
        divergence, safety = self._divergence(self._batches.next(Role.REFUSAL))
        norms = {
            "loss_gradient_norm": self._learner.norm(gradient),
            "safety_gradient_norm": self._learner.norm(safety),
        }
        product = inner_product(gradient, safety)
        conflict = product < 0
        removed = (product / inner_product(safety, safety)).where(conflict, 0.0)
        for part, direction in zip(gradient, safety, strict=True):
            part.add_(direction * (self._settings.rho - removed))
        self._learner.set_gradient(gradient)
        return {"loss": loss, "divergence": divergence, "conflict": conflict.float(), **norms}

    def _divergence(self, batch: Batch) -> tuple[Tensor, Gradient]:
        """Return the mean divergence from the aligned model over the supervised positions, and its gradient."""
        from torch.nn.functional import kl_div, log_softmax

        def terms(piece: Piece) -> tuple[Tensor, Tensor]:
            with self._start.at_reference():
                aligned = log_softmax(self._learner.predict(piece).logits.float(), dim=-1)
            prediction = self._learner.predict(piece)
            logits = prediction.logits.float()
            current = log_softmax(logits.detach(), dim=-1)
            positions = prediction.positions.clamp(min=1)
            # Its gradient in the logits is that of the divergence.
            linear = ((current.exp() - aligned.exp()) * logits).sum() / positions
            return linear, kl_div(current, aligned, reduction="sum", log_target=True) / positions

        (_, divergence), gradient = self._learner.accumulate(self._learner.pieces(batch), terms)
        return divergence, gradient

    def state_dict(self) -> dict[str, Any]:
        """Return the initial parameters."""
        return {"start": self._start.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._start.load_state_dict(state["start"])
