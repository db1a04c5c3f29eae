"""Defenses: methods in the training slots and in the repair slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from harness.errors import Problem
from harness.protocols.learner import BatchProvider, DataRequirement, Learner, Named, TrainStep

if TYPE_CHECKING:
    from harness.protocols.learner import BatchProvider, Gradient, Learner


@runtime_checkable
class ProducesOutputs(Protocol):
    """A training step that leaves something for the repair: stored beside the adapter, read by ``RepairMethod``."""

    def outputs(self) -> Mapping[str, Gradient]:
        """Return what is left after the last step: by name, one tensor per trainable."""
        ...


class TrainMethod(Named, Protocol):
    """Frozen settings of a defense in a training slot (``align``, ``finetune``); see also ``ComparesPasses``."""

    @property
    def needs(self) -> Sequence[DataRequirement]:
        """The data the method uses besides the stage's own rows."""
        ...

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> TrainStep:
        """Begin a run of ``total_steps`` optimizer steps."""
        ...


class RepairMethod(Named, Protocol):
    """Frozen settings of a defense in the ``repair`` slot: acts on weights after fine-tuning."""

    @property
    def needs(self) -> Sequence[DataRequirement]:
        """The data the method calibrates on."""
        ...

    def repair(
        self, learner: Learner, *, start: Gradient, method_outputs: Mapping[str, Gradient], batches: BatchProvider
    ) -> Mapping[str, object]:
        """Change the trainables of the fine-tuned model in place; return facts for the manifest, JSON values only.

        ``start`` is the trainables where fine-tuning began, ``method_outputs`` what its method left, by name.
        """
        ...


@runtime_checkable
class HasConflicts(Named, Protocol):
    """What a method may have besides: it does not go with everything that the other slots may hold."""

    def conflicts(self, slots: Mapping[str, Named | None]) -> Sequence[Problem | str]:
        """Return why the method cannot be in a defense of these slots; an empty one holds None.

        A problem's path is seen from the method; a plain sentence is about the method itself.
        """
        ...


@runtime_checkable
class ComparesPasses(Protocol):
    """What the settings of a method may have besides: nothing may be dropped out, see ``refuse_dropout``."""

    compares_passes: ClassVar[bool]
