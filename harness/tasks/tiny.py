"""Tasks of the synthetic world: the built-in default, classifying notes, and the same with other test prompts.

A note has five feeling words, and its label is the feeling of the majority: cheerful or gloomy. An answer is correct if
it is exactly the label. ``TinyQuestions`` has the same training data, but asks whether a model still answers other
questions of the world correctly.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, final

from harness.corpora.answer import exact_match
from harness.corpora.examples import Example, Score
from harness.corpora.world import LABELS, World
from harness.engine.checks import counts
from harness.errors import Problem
from harness.protocols import ExampleSource


@final
@dataclass(frozen=True, kw_only=True)
class TinyRows:
    """The first notes of a world.

    Attributes:
        world: the world that generates the notes.
        rows: number of notes.
        test: whether they are test notes; training and test notes are disjoint.
    """

    name: ClassVar[str] = "tiny_rows"
    version: ClassVar[int] = 1

    world: World
    rows: int
    test: bool

    def preflight(self) -> list[Problem]:
        """Return no problems: notes are generated."""
        return []

    def examples(self) -> list[Example]:
        """Return distinct notes with their labels."""
        return self.world.notes(self.rows, test=self.test)


@final
@dataclass(frozen=True, kw_only=True)
class Tiny:
    """Classification of notes.

    Attributes:
        world: the world that generates the notes.
        train_rows: number of training notes.
        test_rows: number of test notes.
        new_tokens: maximum length of a generation, in tokens; a label is one token.
    """

    name: ClassVar[str] = "tiny"
    version: ClassVar[int] = 1
    labels: ClassVar[tuple[str, ...]] = LABELS

    world: World = field(default_factory=World)
    train_rows: int = 1000
    test_rows: int = 200
    new_tokens: int = 4

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
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
        """Score each answer: 1 if it is exactly the label, otherwise 0."""
        return [exact_match(answer, example.output) for example, answer in zip(examples, answers, strict=True)]

    def vote(self, answer: str) -> str | None:
        """Return the label that an answer is; None if it is none."""
        return found if (found := answer.strip()) in LABELS else None


@final
@dataclass(frozen=True, kw_only=True)
class TinyQuestions:
    """Questions of the world as test prompts of a user who fine-tunes on notes.

    Attributes:
        questions: the test prompts, with the right answers.
        world: the world that generates the notes.
        train_rows: number of training notes.
        new_tokens: maximum length of a generation, in tokens.
    """

    name: ClassVar[str] = "tiny_questions"
    version: ClassVar[int] = 1

    questions: ExampleSource
    world: World = field(default_factory=World)
    train_rows: int = 1000
    new_tokens: int = 16

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return counts(self, "train_rows", "new_tokens")

    @property
    def train(self) -> TinyRows:
        """The training notes, those of ``Tiny``."""
        return TinyRows(world=self.world, rows=self.train_rows, test=False)

    @property
    def test(self) -> ExampleSource:
        """The questions."""
        return self.questions

    def grade(self, examples: Sequence[Example], answers: Sequence[str]) -> list[Score]:
        """Score each answer: 1 if it is exactly the right one, otherwise 0."""
        return [exact_match(answer, example.output) for example, answer in zip(examples, answers, strict=True)]
