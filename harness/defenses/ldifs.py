"""LDIFS: fine-tuning that keeps the model's features on the user's rows near those of the aligned model.

Jishnu Mukhoti, Yarin Gal, Philip H. S. Torr, Puneet K. Dokania: "Fine-tuning can cripple your foundation model;
preserving features may be the solution", TMLR 2024 (arXiv 2308.13320), as a baseline in Huang et al., "Booster", ICLR
2025 (arXiv 2409.01586).

With ``a_l`` the output of the feed-forward block of layer ``l`` at the tokens of a row, ``a_l^0`` that of the aligned
model and ``g`` the user's loss: the optimizer is given the gradient of
``g(w) + rho/2 * mean over rows of sum_l ||a_l - a_l^0||_F^2``. Two forward passes and one backward pass per step; the
aligned model is the one under training with its trainables put back, so no second model is held.

Deviations from the authors' code (the Booster repository): there the sum runs over the batch instead of its mean, so
that ``rho`` depends on the batch size, and the term of a layer counts only while it is below 0.1, so that the penalty
vanishes exactly where the drift is large; ``distance: gated_sum`` gives both, and its ``rho`` of 1e-4 (batches of 5)
belongs to it. Padding is left out, which it is not there. The reference is no second copy of the model, and the
additional clipping at norm 5 is left to ``max_grad_norm``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, final

from harness.corpora.encode import IGNORED
from harness.engine.checks import not_negative
from harness.errors import Problem
from harness.mechanisms.reference_weights import ReferenceWeights

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols import Batch, BatchProvider, DataRequirement, Learner, Metrics, Piece

GATE = 0.1
"""A layer's term counts while it is below this, in ``gated_sum``."""


@final
@dataclass(frozen=True, kw_only=True)
class LDIFS:
    """Settings of LDIFS.

    Attributes:
        rho: weight of the squared distance of features.
        distance: ``mean`` over the rows of a batch; ``gated_sum`` is the sum over the batch, of the layers whose term
            is below 0.1.
    """

    name: ClassVar[str] = "ldifs"
    version: ClassVar[int] = 1

    rho: float = 1e-4
    distance: Literal["mean", "gated_sum"] = "mean"

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Nothing besides the stage's own rows."""
        return ()

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return not_negative(self, "rho")

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> LDIFSStep:  # noqa: ARG002
        """Begin a run.

        Raises:
            ModelError: the feed-forward blocks of the model cannot be found.
        """
        return LDIFSStep(self, learner)


class Looked(NamedTuple):
    """What a piece adds to the loss, and to the squared distance of the features of each layer, ``[layers]``."""

    loss: Tensor
    terms: Tensor


@final
class LDIFSStep:
    """One run of LDIFS: where it started."""

    def __init__(self, settings: LDIFS, learner: Learner) -> None:
        """Drop the anchor and find the feed-forward blocks."""
        from harness.models.decoder import mlp_blocks

        self._settings = settings
        self._learner = learner
        self._start = ReferenceWeights(learner)
        self._blocks = dict(enumerate(mlp_blocks(learner.module)))

    def backward(self, batch: Batch) -> Metrics:
        """Write the gradient of the penalised loss; report the user's ``loss``, the penalty and open layers."""
        import torch

        from harness.training.distributed import all_reduce_sum
        from harness.training.pieces import swept

        pieces = self._learner.pieces(batch)
        look: Callable[[Piece], Looked] = self._look
        weight = 0.5 * self._settings.rho
        if self._settings.distance == "mean":
            rows = _tokens(batch).any(1).sum()
            all_reduce_sum(rows)
            weights = torch.full((len(self._blocks),), weight, device=rows.device) / rows.clamp(min=1)
        else:
            seen, look = swept(pieces, self._look)
            sums = torch.stack([each.terms.detach() for each in seen]).sum(0)
            all_reduce_sum(sums)
            weights = weight * (weight * sums < GATE)

        def shares(piece: Piece) -> tuple[Tensor, Tensor, Tensor]:
            loss, terms = look(piece)
            return loss + (weights * terms).sum(), loss, terms

        (_, loss, sums), gradient = self._learner.accumulate(pieces, shares)
        self._learner.set_gradient(gradient)
        return {
            "loss": loss,
            "penalty": (weights * sums).sum(),
            "feature_distance": sums.sum().sqrt(),
            "layers_held": (weights > 0).sum(),
        }

    def _look(self, piece: Piece) -> Looked:
        import torch

        from harness.models.decoder import kept_outputs

        with self._start.at_reference(), kept_outputs(self._blocks) as aligned:
            self._learner.predict(piece)
        with kept_outputs(self._blocks) as present:
            loss = self._learner.loss(piece)
        tokens = _tokens(piece.batch)
        terms = torch.stack([_squared(present[place] - aligned[place], tokens) for place in self._blocks])
        return Looked(loss, terms)

    def state_dict(self) -> dict[str, Any]:
        """Return the anchor."""
        return {"start": self._start.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._start.load_state_dict(state["start"])


def _tokens(batch: Batch) -> Tensor:
    """Return which positions count, ``[batch, time]``: no padding, and no row that only fills a short batch."""
    return batch["attention_mask"].bool() & (batch["labels"] != IGNORED).any(1, keepdim=True)


def _squared(difference: Tensor, tokens: Tensor) -> Tensor:
    """Return the squared norm of ``[batch, time, features]`` over the positions that count."""
    return (difference.float().square().sum(-1) * tokens).sum()
