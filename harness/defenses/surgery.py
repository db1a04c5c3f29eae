"""Surgery: fine-tuning in which no attention head looks at the first token more for harmful text than for safe text.

"Surgery: Mitigating Harmful Fine-Tuning for Large Language Models via Attention Sink", 2026 (code: Lslland/Surgery).

The sink of a head for a text is the mean weight of the first token over all later positions. Its sink divergence is the
sink for harmful text minus that for safe text. With ``g`` the loss of the user, the loss is ``g + alpha * D``, where
``D`` is the mean of ``max(0, divergence)`` over all heads of all layers. In every step the divergences are those of
``batch_size`` harmful answers and as many refusals; the sink of a batch is the mean over its texts.

Which heads count depends on the whole batch of texts. Where it is split, a first pass without gradient finds them.

A forward and backward pass on the user's batch and one on each of the two batches of texts, with plain attention (which
takes the memory of a matrix for each head), per step; a forward pass more for each that is split.

Deviations from the authors' code: safe text are the refusals of the corpus (theirs: answers that BeaverTails labels
safe). Their runs have a learning rate of 5e-6 and 5 epochs.

Fidelity: hand-computed only. Equation and defaults are those of the authors' code (trainer.py, commit 5c22de3); sink
and gradient are computed by hand in the tests, no vectors of the authors' trainer were available.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.corpora.examples import Role
from harness.engine.checks import counts, not_negative
from harness.protocols import DataRequirement
from harness.training.gradients import add_scaled

if TYPE_CHECKING:
    from torch import Tensor

    from harness.errors import Problem
    from harness.protocols import Batch, BatchProvider, Learner, Metrics, Piece


@final
@dataclass(frozen=True, kw_only=True)
class Surgery:
    """Settings of Surgery.

    Attributes:
        alpha: weight of the mean positive divergence.
        batch_size: harmful texts, and safe texts, per step.
        harmful_rows: number of harmful examples available to the defender; None uses all of the corpus.
        safety_rows: number of refusals; None uses all of the corpus.
    """

    name: ClassVar[str] = "surgery"
    version: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 2

    alpha: float = 300.0
    batch_size: int = 1
    harmful_rows: int | None = None
    safety_rows: int | None = None

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Harmful examples and refusals, sampled."""
        return (
            DataRequirement(role=Role.HARMFUL, rows=self.harmful_rows, batch_size=self.batch_size),
            DataRequirement(role=Role.REFUSAL, rows=self.safety_rows, batch_size=self.batch_size),
        )

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return [*not_negative(self, "alpha"), *counts(self, "batch_size", "harmful_rows", "safety_rows")]

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> SurgeryStep:  # noqa: ARG002
        """Start a run."""
        return SurgeryStep(self, learner, batches)


@final
class SurgeryStep:
    """One run of Surgery. It has no state between steps."""

    def __init__(self, settings: Surgery, learner: Learner, batches: BatchProvider) -> None:
        """Store the parts."""
        self._settings = settings
        self._learner = learner
        self._batches = batches

    def backward(self, batch: Batch) -> Metrics:
        """Write the gradient of the regularized loss; report the user's ``loss`` and the mean positive divergence.

        ``positive_heads`` is the share of the heads whose divergence is positive, ``sink_gradient_norm`` includes
        ``alpha``.
        """
        from harness.models.attention_weights import kept_attention

        loss, gradient = self._learner.gradient(batch)
        own = self._learner.norm(gradient)
        drawn = [self._batches.next(role) for role in (Role.HARMFUL, Role.REFUSAL)]
        # Until the gradients are there: in the backward pass, layers may run again.
        with kept_attention(self._learner.module) as kept:
            harmful, safe = (Texts(self._learner, texts, kept) for texts in drawn)
            divergence = harmful.sinks - safe.sinks
            heads = (divergence > 0).float() / divergence.numel()
            pull = [up - down for up, down in zip(harmful.gradient(heads), safe.gradient(heads), strict=True)]
        norm = self._settings.alpha * self._learner.norm(pull)
        add_scaled(gradient, pull, self._settings.alpha)
        self._learner.set_gradient(gradient)
        return {
            "loss": loss,
            "sink_divergence": (heads * divergence).sum(),
            "positive_heads": heads.sum(),
            "loss_gradient_norm": own,
            "sink_gradient_norm": norm,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict: a step has no state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing: a step has no state."""


class Texts:
    """The sinks of all heads for a batch of texts, ``[layers, heads]``, and their gradient.

    Args:
        learner: the model.
        batch: this process's share of the texts.
        kept: filled with the attention weights of every forward pass, by layer.
    """

    def __init__(self, learner: Learner, batch: Batch, kept: Mapping[int, Tensor]) -> None:
        """Compute the sinks."""
        import torch

        from harness.mechanisms.row_noise import real_positions
        from harness.training.distributed import all_reduce_sum, total_on_device
        from harness.training.pieces import first_pass

        self._learner = learner
        self._kept = kept
        self._later = real_positions(batch).clone()
        self._later[:, 0] = False
        self._pieces: Sequence[Piece] = learner.pieces(batch)
        texts = int(self._later.any(dim=1).sum())
        self._texts = total_on_device(texts, self._pieces[0].positions.device).clamp(min=1)
        found, self._again = first_pass(self._pieces, self._sinks)
        self.sinks = torch.stack([part.detach() for part in found]).sum(dim=0)
        all_reduce_sum(self.sinks)

    def gradient(self, weights: Tensor) -> list[Tensor]:
        """Return the gradient of the sum over all heads of ``weights`` times their sinks."""
        return self._learner.accumulate(self._pieces, lambda piece: ((weights * self._again(piece)).sum(),))[1]

    def _sinks(self, piece: Piece) -> Tensor:
        """Return a micro-batch's contribution to the sinks."""
        import torch

        later = piece.of(self._later).float()
        shares = later / (later.sum(dim=1, keepdim=True).clamp(min=1) * self._texts)
        self._learner.predict(piece)
        # Of every head the weights of the first token, [batch, heads, time].
        weights = [self._kept[layer][..., 0].float() for layer in sorted(self._kept)]
        return torch.stack([(each * shares[:, None, :]).sum(dim=(0, 2)) for each in weights])
