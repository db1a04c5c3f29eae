"""Every extension point of the house on one page.

Settings are frozen dataclasses with the class attributes ``name`` and ``version``: they are hashed, so a sweep can
build thousands of them. State is born in ``start()``, inside the job, and can be saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from harness.corpora.record import Example, Grade, Role

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
class Need:
    """Data that a method uses beside the stage's own rows.

    Attributes:
        role: whose rows.
        rows: how many distinct rows the method may see; None means all that the corpus offers for the role.
        batch_size: rows per draw, over all processes; None is not to draw, but to mix them into the stage's own.
        paired: whether each harmful row comes with the refusal of the same prompt, for ``Draws.pair``.
        together: batches drawn one after the other, from the first draw on, in which no row is twice.
        aligned: the rows that alignment trained on, instead of ``rows``.
    """

    role: Role
    rows: int | None
    batch_size: int | None
    paired: bool = False
    together: int = 1
    aligned: bool = False


class Piece(NamedTuple):
    """A part of a process's share of a batch, of as many rows as go through the model at once.

    Attributes:
        place: its number, counted from 0.
        batch: its rows, no longer than the longest of them.
        rows: which rows of the share they are. Empty if the share has no rows left and other processes' have: then
            ``batch`` is one row without a supervised position, which adds nothing.
        positions: how many supervised positions the global batch has, over all pieces and processes.
    """

    place: int
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


class Draws(Protocol):
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

    def moved(self, direction: Gradient, scale: Tensor | float) -> AbstractContextManager[None]:
        """Shift the trainables by ``scale * direction``; on leaving, restore them bit for bit from a copy."""
        ...

    def placed(self, values: Sequence[Tensor]) -> AbstractContextManager[None]:
        """Give the trainables other values; on leaving, restore them bit for bit from a copy."""
        ...

    def write(self, gradient: Sequence[Tensor | None]) -> None:
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


@runtime_checkable
class HandsOver(Protocol):
    """A training step that leaves something for the repair: stored beside the adapter, read by ``RepairMethod``."""

    def handover(self) -> Mapping[str, Gradient]:
        """Return what is left after the last step: by name, one tensor per trainable."""
        ...


class TrainMethod(Named, Protocol):
    """Frozen settings of a defense in a training slot (``align``, ``finetune``); see also ``ComparesPasses``."""

    @property
    def needs(self) -> Sequence[Need]:
        """The data the method uses besides the stage's own rows."""
        ...

    def start(self, learner: Learner, draws: Draws, total_steps: int) -> TrainStep:
        """Begin a run of ``total_steps`` optimizer steps."""
        ...


class RepairMethod(Named, Protocol):
    """Frozen settings of a defense in the ``repair`` slot: acts on weights after fine-tuning."""

    @property
    def needs(self) -> Sequence[Need]:
        """The data the method calibrates on."""
        ...

    def repair(
        self, learner: Learner, *, start: Gradient, handed_over: Mapping[str, Gradient], draws: Draws
    ) -> Mapping[str, object]:
        """Change the trainables of the fine-tuned model in place; return facts for the manifest, JSON values only.

        ``start`` is the trainables where fine-tuning began, ``handed_over`` what its method left, by name.
        """
        ...


@runtime_checkable
class Particular(Named, Protocol):
    """What a method may have besides: it does not go with everything that the other slots may hold."""

    def conflicts(self, slots: Mapping[str, Named | None]) -> list[str]:
        """Return why the method cannot be in a defense of these slots; an empty one holds None."""
        ...


class ExampleSource(Named, Protocol):
    """Frozen settings that name rows: hashed by content, read when a stage runs."""

    def examples(self) -> list[Example]:
        """Read the rows, in order.

        Raises:
            DataError: they are missing, altered or too few.
        """
        ...

    def preflight(self) -> list[str]:
        """Return what is missing for the rows to be read, without the network."""
        ...


class Attack(Named, Protocol):
    """Frozen settings of how the attacker makes harmful rows; their number is the mixture's business."""

    @property
    def needs_victim(self) -> bool:
        """Whether crafting needs the aligned model."""
        ...

    def craft(self, harmful: Sequence[Example], count: int, rng: Random, victim: Module | None) -> list[Example]:
        """Return exactly ``count`` harmful rows made from the attacker's pool.

        Raises:
            DataError: the pool is too small.
        """
        ...


class Task(Named, Protocol):
    """Frozen settings of the user's own task: what is fine-tuned on and how fine-tune accuracy is read."""

    @property
    def new_tokens(self) -> int:
        """Longest answer to generate, in tokens."""
        ...

    @property
    def train(self) -> ExampleSource:
        """The rows a user can fine-tune on, in their published order."""
        ...

    @property
    def test(self) -> ExampleSource:
        """The rows on which accuracy is measured; ``output`` is the reference."""
        ...

    def grade(self, examples: Sequence[Example], answers: Sequence[str]) -> list[Grade]:
        """Grade each answer 0 or 1."""
        ...


class Judge(Named, Protocol):
    """Frozen settings of who decides whether an answer is harmful."""

    def preflight(self) -> list[str]:
        """Return what is missing for the judge to work."""
        ...

    def grade(self, examples: Sequence[Example], answers: Sequence[str], *, device: str) -> list[Grade]:
        """Grade each answer: 1 harmful, 0 harmless."""
        ...


class ModelSource(Named, Protocol):
    """Frozen settings of where a base model comes from."""

    def preflight(self) -> list[str]:
        """Return what is missing for the model to be had: a package, a file, a token."""
        ...

    def write(self, out: Path) -> Mapping[str, object]:
        """Write the model and its tokenizer to ``out``, or a reference to a pinned Hub revision; return facts.

        Raises:
            ModelError: the model cannot be had on this machine.
        """
        ...
