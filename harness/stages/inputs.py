"""Protocols for the inputs of stages: a model, training examples, or generations.

A stage declares the protocol of its input instead of a concrete kind of stage, so that other kinds can be substituted.
Its key depends on the key of the input stage, not on its kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from harness.corpora.examples import Example, Role, Score
from harness.corpora.shards import Shards
from harness.engine.stage import Locate

if TYPE_CHECKING:
    from harness.models.adapter import Lora
    from harness.models.loading import ModelRef
    from harness.models.trained_weights import TrainedWeights
    from harness.stages.base import Base


class ModelStage(Protocol):
    """A stage whose artifact, with those of its ancestors, is a model."""

    @property
    def key(self) -> str:
        """The stage's key."""
        ...

    def weights(self, locate: Locate) -> ModelRef:
        """Return the paths of the model's parts."""
        ...


class AlignedStage(Protocol):
    """A stage whose artifact aligns the base by an adapter or its weights, for a user to fine-tune or an attacker."""

    @property
    def key(self) -> str:
        """The stage's key."""
        ...

    @property
    def base(self) -> Base:
        """The base model."""
        ...

    @property
    def adapter(self) -> Lora | TrainedWeights:
        """Targets, dropout and variant of the adapter (a fused one has another rank), or the trained weights."""
        ...

    def defender_examples(self) -> list[Example]:
        """Return every example that the defender trained on, up to and including this stage."""
        ...

    def weights(self, locate: Locate) -> ModelRef:
        """Return the paths of the model's parts."""
        ...


class MixtureStage(Protocol):
    """A stage whose artifact is the user's fine-tuning data."""

    @property
    def key(self) -> str:
        """The stage's key."""
        ...

    def mixture(self, locate: Locate) -> list[tuple[Example, Role]]:
        """Return the examples in stored order, each with its role: the user's own, the attacker's, or refusals."""
        ...


@runtime_checkable
class ClientStage(Protocol):
    """Optional: a mixture whose rows are held by the clients of a federation."""

    def shards(self, locate: Locate) -> Shards:
        """Return the client of each row, in stored order."""
        ...


class AnswerStage(Protocol):
    """A stage whose artifact is generations for a list of prompts."""

    @property
    def key(self) -> str:
        """The stage's key."""
        ...

    def answers(self, locate: Locate) -> list[dict[str, Any]]:
        """Return one record per prompt, in order, as ``generate.read_answers`` describes."""
        ...


@runtime_checkable
class ScreenedStage(Protocol):
    """Optional: a stage of answers that a method at inference may have given in place of the model."""

    @property
    def screened(self) -> bool:
        """Whether prompts may be rejected."""
        ...

    def rejections(self, locate: Locate) -> list[bool]:
        """Return whether each prompt was rejected, in order; only if some may be."""
        ...


@runtime_checkable
class ScoredStage(Protocol):
    """Optional: a stage of answers that come with their scores."""

    def scores(self, locate: Locate) -> list[Score]:
        """Return the score of every answer, in order."""
        ...
