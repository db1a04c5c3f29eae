"""Interfaces of training methods: the model under training, auxiliary batches, and the training step."""

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
    from harness.protocols.piece import Piece

    Batch = Mapping[str, Tensor]
    """``input_ids``, ``attention_mask`` and ``labels`` (-100 where not supervised), each ``[batch, time]``,
    right-padded. A batch is on the CPU; its micro-batches are on the model's device. A batch of the stage's own
    examples also has their ``places``, ``[batch]``: their indices among all of them."""
    Gradient = list[Tensor]
    """One float32 tensor per trainable parameter, in the order of ``Learner.trainables``."""
    Metrics = Mapping[str, Tensor | float]
    """Metrics of a step, by the name under which they are logged."""


class Named(Protocol):
    """Frozen settings that are part of the identity (key) of stages."""

    @property
    def name(self) -> str:
        """Published name of the method; the label used in tables."""
        ...

    @property
    def version(self) -> int:
        """Incremented when the same settings give different results."""
        ...


@dataclass(frozen=True, kw_only=True)
class DataRequirement:
    """Data that a method uses in addition to the stage's own examples.

    Attributes:
        role: the role of the examples.
        rows: number of distinct examples available to the method; None means all of the corpus for the role.
        batch_size: global batch size of a sampled batch; None mixes the examples into the stage's own instead.
        paired: whether each harmful example comes with the refusal of the same prompt, for ``BatchProvider.pair``.
        disjoint_batches: number of consecutive batches, counted from the first, that share no example.
        aligned: use the examples of the alignment stage instead of ``rows``.
        own: sample the stage's own training examples, the first ``rows`` of them if there are so many; they come under
            the role that the requirement names, and nothing is read for it.
    """

    role: Role
    rows: int | None
    batch_size: int | None
    paired: bool = False
    disjoint_batches: int = 1
    aligned: bool = False
    own: bool = False


class Prediction(NamedTuple):
    """The model's output at the supervised positions of a micro-batch.

    Attributes:
        logits: ``[positions, vocabulary]``.
        targets: ``[positions]``, the next tokens.
        positions: number of supervised positions of the global batch, over all micro-batches and processes.
    """

    logits: Tensor
    targets: Tensor
    positions: Tensor


class Product(NamedTuple):
    """A matrix as the product ``b @ a`` of two factors.

    Attributes:
        b: ``[out, rank]``.
        a: ``[rank, in]``.
    """

    b: Tensor
    a: Tensor


class BatchProvider(Protocol):
    """Seeded batches by role; the position in each endless stream is saved and restored with checkpoints."""

    def derive(self, *names: str) -> int:
        """Return the seed of a named random stream of the method, the same on every process."""
        ...

    def pair(self, role: Role) -> Pair:
        """Return the next batch of a role declared as ``paired``, with the refusals of the same prompts."""
        ...

    def next(self, role: Role) -> Batch:
        """Return the next batch of a role declared in ``needs``."""
        ...

    def every(self, role: Role) -> Iterator[Batch]:
        """Yield each example of a role once, in batches of at most the declared size; does not advance ``next``."""
        ...


class Learner(Protocol):
    """The model under training, as a method sees it; works the same with one process and with several.

    A batch is this process's share of a global batch. It may be split into micro-batches; ``gradient`` hides that. For
    a custom loss, which is a sum over micro-batches and processes, pass each micro-batch's contribution to
    ``accumulate``.
    """

    @property
    def module(self) -> Module:
        """The model itself, for hooks."""
        ...

    @property
    def trainables(self) -> Sequence[Parameter]:
        """The parameters that the optimizer updates; float32."""
        ...

    @property
    def steps_taken(self) -> int:
        """The number of optimizer steps taken in this run."""
        ...

    @property
    def example_count(self) -> int:
        """The number of the stage's own examples that are trained on, the mixed-in ones included."""
        ...

    @property
    def alignment(self) -> Mapping[str, Product]:
        """The change of the weights by alignment, aligned minus unaligned, by the name of the adapted layer.

        It is the product of the aligned adapter's factors, scale included, under both adapter protocols: whether that
        adapter is trained further or has been merged, and then without the rounding of the merge. Float32, on the
        model's device. Empty unless the method's settings declare ``UsesAlignment``.
        """
        ...

    def gradient(self, batch: Batch) -> tuple[Tensor, Gradient]:
        """Return the mean loss over the supervised positions of the global batch, and its gradient."""
        ...

    def value(self, batch: Batch) -> Tensor:
        """Return the mean loss over the supervised positions of the global batch, without an autograd graph."""
        ...

    def pieces(self, batch: Batch, *, like: Sequence[Piece] | None = None) -> Sequence[Piece]:
        """Split a batch into micro-batches, the same number on every process; a collective call.

        A batch that is split is sorted by length first. With ``like``, the micro-batches of another batch whose
        examples correspond to those of this one, it is split into the same ``rows``.
        """
        ...

    def predict(self, piece: Piece) -> Prediction:
        """Run the model on a micro-batch; hooks on ``module`` see the forward pass."""
        ...

    def loss(self, piece: Piece) -> Tensor:
        """Return a micro-batch's contribution to the mean loss over the supervised positions of the global batch."""
        ...

    def accumulate(
        self, pieces: Sequence[Piece], shares: Callable[[Piece], tuple[Tensor, ...]]
    ) -> tuple[list[Tensor], Gradient]:
        """Return sums over the micro-batches of all processes, and the gradient of the first sum.

        ``shares`` is called once per micro-batch and returns its contribution to each sum; only the first needs an
        autograd graph. Hooks must stay registered until the call returns: activation checkpointing may run layers again
        in the backward pass.
        """
        ...

    def norm(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the global L2 norm of tensors that are replicated on every process."""
        ...

    def perturbed(self, direction: Gradient, scale: Tensor | float) -> AbstractContextManager[None]:
        """Add ``scale * direction`` to the trainable parameters; restore them exactly on exit."""
        ...

    def with_weights(self, values: Sequence[Tensor]) -> AbstractContextManager[None]:
        """Set the trainable parameters to ``values``; restore them exactly on exit."""
        ...

    def set_gradient(self, gradient: Sequence[Tensor | None]) -> None:
        """Copy the combined gradient of a step into ``.grad``; the optimizer skips parameters whose entry is None."""
        ...


class TrainStep(Protocol):
    """The state of one training run of a method."""

    def backward(self, batch: Batch) -> Metrics:
        """Write ``.grad`` for the optimizer without changing any weight; return the metrics to log."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state for resuming: tensors and plain values, identical on all processes; a collective call."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        ...
