"""Contamination: the examples that a model was trained on, collected over the lineage of its stage."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from harness.corpora.examples import Example
from harness.engine.stage import Locate, Stage, lineage


@runtime_checkable
class SeesExamples(Protocol):
    """A stage that trains on examples, directly or in a method's auxiliary batches."""

    def examples_seen(self, locate: Locate) -> Sequence[Example]:
        """Return these examples; ``locate`` maps the stage and its ancestors to their artifacts."""
        ...


def seen_in_training(last: Stage, locate: Locate) -> list[Example]:
    """Return every example that a stage or one of its ancestors trained on."""
    return [
        example
        for stage in lineage((last,))
        if isinstance(stage, SeesExamples)
        for example in stage.examples_seen(locate)
    ]
