"""The user's task of the embedded default: is a note of the invented world cheerful or gloomy.

A note has five feeling words, and its label is the feeling of most of them. An answer counts if it is the label and
nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, final

from harness.corpora.examples import Example, Score
from harness.corpora.world import World
from harness.engine.checks import counts
from harness.errors import Problem


@final
@dataclass(frozen=True, kw_only=True)
class TinyRows:
    """The first notes of a world.

    Attributes:
        world: whose notes.
        rows: how many.
        test: whether they are test notes; those are never training notes.
    """

    name: ClassVar[str] = "tiny_rows"
    version: ClassVar[int] = 1

    world: World
    rows: int
    test: bool

    def preflight(self) -> list[Problem]:
        """Return nothing: what is generated cannot be missing."""
        return []

    def examples(self) -> list[Example]:
        """Return the notes with their labels, all distinct."""
        return self.world.notes(self.rows, test=self.test)


@final
@dataclass(frozen=True, kw_only=True)
class Tiny:
    """Sorting notes.

    Attributes:
        world: whose notes.
        train_rows: how many notes a user can fine-tune on.
        test_rows: how many notes accuracy is measured on.
        new_tokens: longest answer to generate, in tokens; a label is one, and a longer answer is wrong.
    """

    name: ClassVar[str] = "tiny"
    version: ClassVar[int] = 1

    world: World = field(default_factory=World)
    train_rows: int = 1000
    test_rows: int = 200
    new_tokens: int = 4

    def problems(self) -> list[Problem]:
        """Return every setting out of range."""
        return counts(self, "train_rows", "test_rows", "new_tokens")

    @property
    def train(self) -> TinyRows:
        """The training notes."""
        return TinyRows(world=self.world, rows=self.train_rows, test=False)

    @property
    def test(self) -> TinyRows:
        """The test notes."""
        return TinyRows(world=self.world, rows=self.test_rows, test=True)

    def grade(self, examples: Sequence[Example], answers: Sequence[str]) -> list[Score]:
        """Grade 1 an answer that is the label and nothing else."""
        return [_grade(example.output, answer) for example, answer in zip(examples, answers, strict=True)]


def _grade(label: str, answer: str) -> Score:
    right = answer.strip() == label
    return Score(float(right), "exact" if right else f"is not {label}")
