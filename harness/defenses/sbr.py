"""SBR (safety bottleneck regularization): the last hidden states of a few harmful prompts are held at the aligned ones.

Guoxin Lu, Letian Sha, Qing Wang, Peijie Sun, Hao Zhou, Hua Dai, Fu Xiao: "Safety Anchor: Defending Harmful Fine-tuning
via Geometric Bottlenecks", ICML 2026 (arXiv 2605.05995).

For K harmful prompts, the anchors, let ``h_k`` be the output of the final norm at the last token of the prompt, where
the first token of the answer is predicted, and ``h_k^0`` that of the aligned model. With ``g`` the user's loss and d
hidden features, the loss is ``g(w) + lamb * (sum over k of ||h_k - h_k^0||^2) / (K d)``: the mean over the entries, so
``lamb`` would be d times stronger on the squared norm. All anchors are used in every step. At the aligned model the
second term and its gradient are zero, so the first step is that of plain training, without dropout in the adapter.

A forward and backward pass on the user's batch and one on the K prompts per step; ``h^0`` is computed once.

The anchors are the prompts of the first ``anchors`` refusals of the corpus; their answers are not used. The harmful
score is computed on other prompts.

Deviations from the authors' code: the anchors come from the corpus (theirs are eight sentences in the code); the
position of the last prompt token is that before the first label, so padding does not matter. Their runs use a model in
4 bit, 8-bit AdamW with a learning rate of 1e-5 and no decay, and rank-stabilized LoRA on seven kinds of modules.

Fidelity: hand-computed only. Equation, ``lamb`` and the number of anchors are those of the authors' code (commit
188990b); loss and gradient are computed by hand in the tests, no vectors of the authors' trainer were available.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, final

from harness.corpora.encode import IGNORED
from harness.corpora.examples import Role
from harness.engine.checks import counts, not_negative
from harness.errors import Problem
from harness.mechanisms.reference_weights import ReferenceWeights
from harness.protocols import DataRequirement
from harness.training.gradients import add_scaled

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols import Batch, BatchProvider, Gradient, Learner, Metrics, Piece


@final
@dataclass(frozen=True, kw_only=True)
class SBR:
    """Settings of SBR.

    Attributes:
        lamb: weight of the mean squared distance.
        anchors: number of harmful prompts, over all processes.
    """

    name: ClassVar[str] = "sbr"
    version: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 2
    works_on_shards: ClassVar[bool] = True

    lamb: float = 50.0
    anchors: int = 8

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Refusals, for their prompts; one batch has all of them."""
        return (DataRequirement(role=Role.REFUSAL, rows=self.anchors, batch_size=self.anchors),)

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return [*not_negative(self, "lamb"), *counts(self, "anchors")]

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> SBRStep:  # noqa: ARG002
        """Start a run.

        Raises:
            ModelError: the final norm of the model cannot be found.
        """
        return SBRStep(self, learner, batches)


class Anchor(NamedTuple):
    """A micro-batch of anchors, and their hidden states in the aligned model, ``[anchors, features]``."""

    piece: Piece
    aligned: Tensor


@final
class SBRStep:
    """One run of SBR; its state is the initial parameters."""

    def __init__(self, settings: SBR, learner: Learner, batches: BatchProvider) -> None:
        """Copy the initial parameters, find the final norm and sample the anchors.

        They are sampled here, as the first batch of their role, so that a resumed run has the same ones in the same
        order. Their aligned states are computed in the first step, also after a resume.
        """
        from harness.models.decoder import final_norm

        self._settings = settings
        self._learner = learner
        self._start = ReferenceWeights(learner)
        self._norm = {0: final_norm(learner.module)}
        self._prompts = prompts(batches.next(Role.REFUSAL))
        self._anchors: list[Anchor] = []

    def backward(self, batch: Batch) -> Metrics:
        """Write the gradient of the regularized loss; report the user's ``loss``, the distance and both norms.

        ``anchor_gradient_norm`` includes ``lamb``: where it is far above ``loss_gradient_norm``, clipping leaves little
        of the user's part.
        """
        if not self._anchors:
            self._anchors = self._aligned_anchors()
        loss, gradient = self._learner.gradient(batch)
        distance, pull = self._distance()
        norms = {
            "loss_gradient_norm": self._learner.norm(gradient),
            "anchor_gradient_norm": self._settings.lamb * self._learner.norm(pull),
        }
        add_scaled(gradient, pull, self._settings.lamb)
        self._learner.set_gradient(gradient)
        return {"loss": loss, "anchor_distance": distance, **norms}

    def _distance(self) -> tuple[Tensor, Gradient]:
        """Return the mean squared distance of the anchors' states from the aligned ones, and its gradient."""
        aligned = {anchor.piece.number: anchor.aligned for anchor in self._anchors}

        def share(piece: Piece) -> tuple[Tensor]:
            difference = self._states(piece) - aligned[piece.number]
            return (difference.square().sum() / (piece.positions * difference.shape[-1]),)

        (distance,), gradient = self._learner.accumulate([anchor.piece for anchor in self._anchors], share)
        return distance, gradient

    def _aligned_anchors(self) -> list[Anchor]:
        pieces = self._learner.pieces(self._prompts)
        with self._start.at_reference():
            return [Anchor(piece, self._states(piece)) for piece in pieces]

    def _states(self, piece: Piece) -> Tensor:
        """Return the output of the final norm at the last token of each prompt, ``[anchors, features]``."""
        from harness.models.decoder import kept_outputs

        with kept_outputs(self._norm) as kept:
            self._learner.predict(piece)
        return kept[0].flatten(0, -2).index_select(0, piece.supervised).float()

    def state_dict(self) -> dict[str, Any]:
        """Return the initial parameters."""
        return {"start": self._start.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._start.load_state_dict(state["start"])


def prompts(batch: Batch) -> Batch:
    """Return a batch whose examples end with the first token of their answer, the only one that is supervised.

    Its only supervised position is the last token of the prompt, and no later token is computed.
    """
    import torch

    supervised = batch["labels"] != IGNORED
    first = supervised.int().argmax(dim=1, keepdim=True)
    places = torch.arange(supervised.shape[1])
    longest = int(first.max()) + 1
    return {
        "input_ids": batch["input_ids"][:, :longest],
        "attention_mask": (places <= first).to(batch["attention_mask"].dtype)[:, :longest],
        "labels": batch["labels"].where(supervised & (places == first), IGNORED)[:, :longest],
    }
