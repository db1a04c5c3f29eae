"""Exposure: which prompts a model was trained on, found in the lineage of its stage."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from harness.corpora.examples import Example
from harness.engine.stage import Locate, Stage, lineage


@runtime_checkable
class SeesExamples(Protocol):
    """A stage with examples on which a model was trained, or which it drew while it was."""

    def examples_seen(self, locate: Locate) -> Sequence[Example]:
        """Return them; ``locate`` finds the artifacts of the stage and its ancestors."""
        ...


def seen_in_training(last: Stage, locate: Locate) -> list[Example]:
    """Return every row that a stage or one of its ancestors was trained on or drew."""
    return [
        example
        for stage in lineage((last,))
        if isinstance(stage, SeesExamples)
        for example in stage.examples_seen(locate)
    ]
