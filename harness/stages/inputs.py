"""What a stage may take as input, whatever kind of stage makes it: a model, training examples, or answers.

A stage that reads one of these names the protocol, not a kind, so that another kind can stand in its place. The keys of
its readers do not depend on the kind, only on the key of the stage that they are given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from harness.corpora.examples import Example, Role
from harness.engine.stage import Locate

if TYPE_CHECKING:
    from harness.models.loading import ModelRef


class ModelStage(Protocol):
    """A stage whose artifact, with those of its ancestors, is a model."""

    @property
    def key(self) -> str:
        """The stage's key."""
        ...

    def weights(self, locate: Locate) -> ModelRef:
        """Return where the parts of the model are."""
        ...


class MixtureStage(Protocol):
    """A stage whose artifact is what a user fine-tunes on."""

    @property
    def key(self) -> str:
        """The stage's key."""
        ...

    def mixture(self, locate: Locate) -> list[tuple[Example, Role]]:
        """Return the examples in training order, each with its role: the user's own, or the attacker's."""
        ...


class AnswerStage(Protocol):
    """A stage whose artifact is answers to prompts."""

    @property
    def key(self) -> str:
        """The stage's key."""
        ...

    def answers(self, locate: Locate) -> list[dict[str, str]]:
        """Return one row for each prompt, in order: ``instruction``, ``input``, ``reference``, ``answer``."""
        ...
