"""The model under training as a method sees it, the data it draws, and the step it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from harness.corpora.examples import Role

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter

    from harness.corpora.batches import Pair

    Batch = Mapping[str, Tensor]
    """``input_ids``, ``attention_mask`` and ``labels`` (-100 where not supervised), each ``[batch, time]``."""
    Gradient = list[Tensor]
    """One float32 tensor per trainable parameter, in the order of ``Learner.trainables``."""
    Metrics = Mapping[str, Tensor | float]
    """What a step computed, by the name under which it is logged."""


class Named(Protocol):
    """Frozen settings that enter identity."""

    @property
    def name(self) -> str:
        """What the field calls it; it stands in tables."""
        ...

    @property
    def version(self) -> int:
        """Bumped when the same settings give other results."""
        ...


@dataclass(frozen=True, kw_only=True)
class DataRequirement:
    """Data that a method uses beside the stage's own rows.

    Attributes:
        role: whose rows.
        rows: how many distinct rows the method may see; None means all that the corpus offers for the role.
        batch_size: rows per draw, over all processes; None is not to draw, but to mix them into the stage's own.
        paired: whether each harmful row comes with the refusal of the same prompt, for ``BatchProvider.pair``.
        disjoint_batches: batches drawn one after the other, from the first draw on, in which no row is twice.
        aligned: the rows that alignment trained on, instead of ``rows``.
    """

    role: Role
    rows: int | None
    batch_size: int | None
    paired: bool = False
    disjoint_batches: int = 1
    aligned: bool = False


class Piece(NamedTuple):
    """A part of a process's share of a batch, of as many rows as go through the model at once.

    Attributes:
        number: its position in the batch, counted from 0.
        batch: its rows, no longer than the longest of them.
        rows: which rows of the share they are. Empty if the share has no rows left and other processes' have: then
            ``batch`` is one row without a supervised position, which adds nothing.
        positions: how many supervised positions the global batch has, over all pieces and processes.
    """

    number: int
    batch: Batch
    rows: slice
    positions: Tensor

    def of(self, whole: Tensor) -> Tensor:
        """Return the piece's part of a tensor ``[rows, time, ...]`` that belongs to the whole share."""
        rows, time = self.batch["labels"].shape
        part = whole[self.rows, :time]
        return part if len(part) else whole.new_zeros((rows, time, *whole.shape[2:]))


class Prediction(NamedTuple):
    """The model's output where a piece is supervised.

    Attributes:
        logits: ``[positions, vocabulary]``, of the piece's rows.
        targets: ``[positions]``, the tokens that should follow.
        positions: how many supervised positions the global batch has, over all pieces and processes.
    """

    logits: Tensor
    targets: Tensor
    positions: Tensor


class BatchProvider(Protocol):
    """Seeded batches by role; where the endless ones stand is saved and restored with the method's state."""

    def derive(self, *names: str) -> int:
        """Return the seed of a named stream of the method's own random choices, the same on every process."""
        ...

    def pair(self, role: Role) -> Pair:
        """Return the next batch of a role declared as ``paired``, beside the refusals of the same prompts."""
        ...

    def next(self, role: Role) -> Batch:
        """Return the next batch of a role the method declared in ``needs``, on the model's device."""
        ...

    def every(self, role: Role) -> Iterator[Batch]:
        """Give each row of a role once, in batches of at most the declared size; ``next`` does not notice."""
        ...


class Learner(Protocol):
    """The model under training, as a method sees it. Works the same on one process and on many.

    A batch is this process's share of the whole step's batch, or of a draw. It may have to go through the model in
    pieces, of which nothing is to be seen in ``gradient``. A loss of a method's own is a sum over pieces and processes:
    ``accumulate`` is told what a piece adds to it.
    """

    @property
    def module(self) -> Module:
        """The model itself, for hooks."""
        ...

    @property
    def trainables(self) -> Sequence[Parameter]:
        """The parameters that the optimizer moves; float32."""
        ...

    @property
    def steps_taken(self) -> int:
        """How many steps the optimizer has taken in this run."""
        ...

    def gradient(self, batch: Batch) -> tuple[Tensor, Gradient]:
        """Return the mean loss over the supervised positions of the global batch, and its gradient."""
        ...

    def pieces(self, batch: Batch) -> Sequence[Piece]:
        """Cut a batch into what goes through the model at once, equally often on every process, who ask together."""
        ...

    def predict(self, piece: Piece) -> Prediction:
        """Run the model on a piece; hooks on ``module`` see the forward pass."""
        ...

    def loss(self, piece: Piece) -> Tensor:
        """Return what a piece adds to the mean loss over the supervised positions of the global batch."""
        ...

    def accumulate(
        self, pieces: Sequence[Piece], shares: Callable[[Piece], tuple[Tensor, ...]]
    ) -> tuple[list[Tensor], Gradient]:
        """Return sums over the pieces of all processes, and the gradient of the first of them.

        ``shares`` is called for one piece after another, and what it returns is what this piece adds to each sum; only
        the first needs a graph. Hooks must stay until the end, as layers may run again in the backward pass.
        """
        ...

    def norm(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the global L2 norm over a collection of tensors that is the same on every process."""
        ...

    def perturbed(self, direction: Gradient, scale: Tensor | float) -> AbstractContextManager[None]:
        """Shift the trainables by ``scale * direction``; on leaving, restore them bit for bit from a copy."""
        ...

    def with_weights(self, values: Sequence[Tensor]) -> AbstractContextManager[None]:
        """Give the trainables other values; on leaving, restore them bit for bit from a copy."""
        ...

    def set_gradient(self, gradient: Sequence[Tensor | None]) -> None:
        """Give the optimizer a step's combined gradient, of which it gets a copy; it passes over None."""
        ...


class TrainStep(Protocol):
    """The state of one training run of a method."""

    def backward(self, batch: Batch) -> Metrics:
        """Leave ``.grad`` ready for the optimizer and every weight exactly as it was; return what to log."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: tensors and plain values, the same on all processes, who ask together."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        ...
