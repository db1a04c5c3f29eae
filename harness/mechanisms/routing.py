"""Training of routed experts: the language loss, a gating loss that sends each row to its expert, and a drift penalty.

H3Fusion: Selim Furkan Tekin et al., EACL 2026 (arXiv 2411.17792). With ``q_e`` the mean of a row's routing weights
(before the choice of the largest) over its tokens and over the layers, and ``y`` the expert of the row's source, the
loss is

    CE + gate_weight * gate + drift_weight * drift

in one of two forms. ``corrected``, the default:

    gate = mean over rows of -ln q_y,   drift = sum_e || s B_e A_e - s B_e0 A_e0 ||_F^2 over all matrices,

the squared distance of the experts' changes from those that they start with. ``published``, as in the authors' code:

    gate = mean over rows of -ln softmax(q)_y,   drift = (1 / L) sum over all factors of their norm ||.||_2,

where the softmax of what is a distribution already bounds the gate to an interval of width 1, and the norm pulls each
factor towards zero with a constant force. Positions of padding are left out of ``q`` in both forms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, final

from harness.corpora.encode import SOURCE
from harness.engine.checks import not_negative
from harness.errors import Problem

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from harness.protocols import Batch, BatchProvider, DataRequirement, Learner, Metrics, Piece

Form = Literal["corrected", "published"]


@final
@dataclass(frozen=True, kw_only=True)
class Routing:
    """Settings of the training; a ``TrainMethod``.

    Attributes:
        gate_weight: weight of the gating loss.
        drift_weight: weight of the drift penalty.
        form: of both; see the module.
        router: ``frozen`` leaves the router at its random start, as the authors' code does.
    """

    name: ClassVar[str] = "routing"
    version: ClassVar[int] = 1

    gate_weight: float = 0.1
    drift_weight: float = 1e-3
    form: Form = "corrected"
    router: Literal["trained", "frozen"] = "trained"

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Only the stage's own examples, each with its source."""
        return ()

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return not_negative(self, "gate_weight", "drift_weight")

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> RoutingStep:  # noqa: ARG002
        """Start a run."""
        return RoutingStep(self, learner)


@final
class RoutingStep:
    """One run. The experts' start is that of the model that the run starts with, so there is no state to save."""

    def __init__(self, settings: Routing, learner: Learner) -> None:
        """Copy the experts' factors."""
        from harness.models.routed import blocks_of

        self._settings = settings
        self._learner = learner
        self._blocks = list(blocks_of(learner.module).values())
        self._start = [_copied(block.factors()) for block in self._blocks]

    def backward(self, batch: Batch) -> Metrics:
        """Write the gradient of the whole loss; report ``loss``, ``gate`` and ``drift``.

        Args:
            batch: with ``source``, ``[rows, 1]``, the index of each row's expert.
        """
        rows, published = len(batch["labels"]), self._settings.form == "published"

        def shares(piece: Piece) -> tuple[Tensor, ...]:
            with kept_logits([block.router for block in self._blocks]) as logits:
                loss = self._learner.loss(piece)
            routed = row_shares(list(logits.values()), piece.batch["attention_mask"])
            gate = gate_loss(routed, piece.batch[SOURCE][:, 0], published=published).sum() / rows
            # The penalty is one of the whole batch.
            drift = self._drift() if piece.number == 0 else loss.new_zeros(())
            whole = loss + self._settings.gate_weight * gate + self._settings.drift_weight * drift
            return whole, loss, gate, drift

        (_, loss, gate, drift), gradient = self._learner.accumulate(self._learner.pieces(batch), shares)
        self._learner.set_gradient(gradient)
        return {"loss": loss, "gate": gate, "drift": drift}

    def _drift(self) -> Tensor:
        import torch

        if self._settings.form == "published":
            factors = [factor for block in self._blocks for pair in block.factors().values() for factor in pair]
            return published_drift([own for factor in factors for own in factor], len(self._blocks))
        parts = [
            distance(now, first, block.shape.scale)
            for block, start in zip(self._blocks, self._start, strict=True)
            for now, first in ((pair, start[name]) for name, pair in block.factors().items())
        ]
        return torch.stack(parts).sum()

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""


class Pair(NamedTuple):
    """The factors of all experts for one matrix: ``[experts, out, rank]`` and ``[experts, rank, in]``."""

    b: Tensor
    a: Tensor


def row_shares(logits: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Return the mean routing weights of each row over its tokens and over the layers, ``[rows, experts]``.

    Args:
        logits: the router's outputs in each layer, ``[rows, time, experts]``.
        mask: ``[rows, time]``, 0 where padding is.
    """
    import torch

    weights = torch.stack([layer.float().softmax(dim=-1) for layer in logits]).mean(dim=0)
    tokens = mask.unsqueeze(-1).to(weights.dtype)
    return (weights * tokens).sum(dim=1) / tokens.sum(dim=1).clamp(min=1)


def gate_loss(shares: Tensor, source: Tensor, *, published: bool) -> Tensor:
    """Return the gating loss of each row, ``[rows]``; see the module.

    Args:
        shares: what ``row_shares`` returns.
        source: ``[rows]``, the index of the expert of each row.
        published: the form of the authors' code.
    """
    logs = shares.log_softmax(dim=-1) if published else shares.clamp(min=1e-9).log()
    return -logs.gather(1, source.unsqueeze(1)).squeeze(1)


def published_drift(factors: Sequence[Tensor], layers: int) -> Tensor:
    """Return the sum of the norms of the factors, divided by the number of layers; see the module."""
    import torch

    return torch.stack([factor.norm() for factor in factors]).sum() / layers


def distance(now: tuple[Tensor, Tensor], first: Pair, scale: float) -> Tensor:
    """Return the squared Frobenius distance of products of factors, times the scale, summed over the experts.

    No matrix of the layer's size is formed: ``||P - Q||^2 = <P, P> - 2 <P, Q> + <Q, Q>`` by products of factors.

    Args:
        now: the factors ``B`` and ``A`` of all experts, as in ``Pair``.
        first: those that they started with.
        scale: factor of the products.
    """
    import torch

    b = torch.cat([now[0], -first.b], dim=2)
    a = torch.cat([now[1], first.a], dim=1)
    left, right = b.transpose(1, 2) @ b, a @ a.transpose(1, 2)
    return (left * right).sum() * scale**2


@contextmanager
def kept_logits(routers: Sequence[Module]) -> Iterator[dict[int, Tensor]]:
    """Yield a dict that a forward pass fills with the output of each router, ``[rows, time, experts]``, by index."""
    kept: dict[int, Tensor] = {}

    def hook_of(index: int) -> Callable[..., None]:
        def keep(_module: Module, _inputs: Any, output: Tensor) -> None:
            kept[index] = output

        return keep

    with ExitStack() as stack:
        for index, router in enumerate(routers):
            stack.callback(router.register_forward_hook(hook_of(index)).remove)
        yield kept


def shuffled(sources: Sequence[int], rng: Random) -> list[int]:
    """Return the sources in a random order: the control of a gating loss, with as many rows of each."""
    return rng.sample(list(sources), len(sources))


def _copied(factors: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Pair]:
    return {name: Pair(b.detach().clone(), a.detach().clone()) for name, (b, a) in factors.items()}
