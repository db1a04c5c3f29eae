"""Sources of examples and models, tasks and judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from harness.corpora.examples import Example, Score
from harness.errors import Problem
from harness.protocols.learner import Named


class ExampleSource(Named, Protocol):
    """Frozen settings that name rows: hashed by content, read when a stage runs."""

    def examples(self) -> list[Example]:
        """Read the rows, in order.

        Raises:
            DataError: they are missing, altered or too few.
        """
        ...

    def preflight(self) -> list[Problem]:
        """Return what is missing for the rows to be read, without the network."""
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

    def grade(self, examples: Sequence[Example], answers: Sequence[str]) -> list[Score]:
        """Grade each answer 0 or 1."""
        ...


class Judge(Named, Protocol):
    """Frozen settings of who decides whether an answer is harmful."""

    def preflight(self) -> list[Problem]:
        """Return what is missing for the judge to work."""
        ...

    def grade(self, examples: Sequence[Example], answers: Sequence[str], *, device: str) -> list[Score]:
        """Grade each answer: 1 harmful, 0 harmless."""
        ...


class ModelSource(Named, Protocol):
    """Frozen settings of where a base model comes from."""

    def preflight(self) -> list[Problem]:
        """Return what is missing for the model to be had: a package, a file, a token."""
        ...

    def write(self, out: Path) -> Mapping[str, object]:
        """Write the model and its tokenizer to ``out``, or a reference to a pinned Hub revision; return facts.

        Raises:
            ModelError: the model cannot be had on this machine.
        """
        ...
