"""SST-2: sentiment classification of sentences from film reviews.

Socher et al., 2013, in the GLUE split. Targets and scoring follow Booster: the sentence is the input, the target is
``positive`` or ``negative``, and an answer is correct if it consists of that word only, in lower case or capitalized.
The scoring is strict on purpose: a model that writes more has lost the format it was trained on. Vaccine and T-Vaccine
search for the word anywhere in the answer (``match: contains``).

Deviations of the defaults: the instruction is worded differently (the presets that follow a repository use its words),
and generation stops after 16 new tokens instead of 200; with the strict scoring a correct answer is one word, so a
longer one is wrong in any case.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from harness.corpora.answer import Match, matched, named_class
from harness.corpora.columns import labelled_examples, unreadable
from harness.corpora.examples import Example, Score
from harness.corpora.sources import Source
from harness.engine.checks import counts
from harness.errors import Problem

CLASSES = ("negative", "positive")
"""The targets, ordered by label."""


@final
@dataclass(frozen=True, kw_only=True)
class Sst2Rows:
    """Examples of the task.

    Attributes:
        source: the source, with the columns ``sentence`` and ``label``.
        instruction: the instruction of every prompt.
        rows: use only the first ``rows`` examples; null uses all.
    """

    name: ClassVar[str] = "sst2_rows"
    version: ClassVar[int] = 1

    source: Source
    instruction: str
    rows: int | None = None

    def preflight(self) -> list[Problem]:
        """Return why the examples cannot be read; a source that is on this machine is read as a check."""
        return unreadable(self.source, self)

    def examples(self) -> list[Example]:
        """Read the examples in their published order.

        Raises:
            DataError: the source is missing, altered, or has other columns.
        """
        return labelled_examples(self.source, "sentence", CLASSES, instruction=self.instruction, limit=self.rows)


@final
@dataclass(frozen=True, kw_only=True)
class Sst2:
    """The SST-2 task.

    Attributes:
        train_source: the training examples, with the columns ``sentence`` and ``label``.
        test_source: the test examples: the GLUE validation split, because the test split has no labels.
        test_rows: use only the first ``test_rows`` test examples.
        new_tokens: maximum length of a generation, in tokens.
        instruction: the instruction of every prompt.
        match: ``contains`` accepts an answer that contains the target word; null requires the bare word.
    """

    name: ClassVar[str] = "sst2"
    version: ClassVar[int] = 1
    labels: ClassVar[tuple[str, ...]] = CLASSES

    train_source: Source
    test_source: Source
    test_rows: int = 1000
    new_tokens: int = 16
    instruction: str = "Judge the sentiment of the input. Reply with one word only: positive or negative."
    match: Match | None = None

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return counts(self, "test_rows", "new_tokens")

    @property
    def train(self) -> Sst2Rows:
        """All training examples, in their published order."""
        return Sst2Rows(source=self.train_source, instruction=self.instruction)

    @property
    def test(self) -> Sst2Rows:
        """The first test examples."""
        return Sst2Rows(source=self.test_source, rows=self.test_rows, instruction=self.instruction)

    def grade(self, examples: Sequence[Example], answers: Sequence[str]) -> list[Score]:
        """Score each answer: 1 if it matches the target word, in lower case or capitalized, otherwise 0."""
        return [
            matched(answer, (example.output, example.output.capitalize()), self.match)
            for example, answer in zip(examples, answers, strict=True)
        ]

    def vote(self, answer: str) -> str | None:
        """Return the class that an answer names, by the rule of ``grade``; None if it names none or both."""
        return named_class(answer, {name: (name, name.capitalize()) for name in CLASSES}, self.match)
