"""AG News: topic classification of news articles, with four classes.

Zhang et al., 2015. Targets and scoring follow Booster: the article is the input, the instruction lists the four
classes, and an answer is correct if it consists of the class name only, as listed or in an accepted lower-case form. As
published, that form is ``sci`` for the fourth class; ``sci/tech`` is wrong. Vaccine and T-Vaccine search for these
forms anywhere in the answer (``match: contains``).

Deviations of the defaults: the instruction is worded differently (the presets that follow a repository use its words),
and generation stops after 16 new tokens instead of 200; with the strict scoring a correct answer has only a few tokens,
so a longer one is wrong in any case.
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

CLASSES = {"World": "world", "Sports": "sports", "Business": "business", "Sci/Tech": "sci"}
"""The targets, ordered by label, each with its accepted variant."""


@final
@dataclass(frozen=True, kw_only=True)
class AgNewsRows:
    """Examples of the task.

    Attributes:
        source: the source, with the columns ``text`` and ``label``.
        instruction: the instruction of every prompt.
        rows: use only the first ``rows`` examples; null uses all.
    """

    name: ClassVar[str] = "agnews_rows"
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
        return labelled_examples(self.source, "text", tuple(CLASSES), instruction=self.instruction, limit=self.rows)


@final
@dataclass(frozen=True, kw_only=True)
class AgNews:
    """The AG News task.

    Attributes:
        train_source: the training examples, with the columns ``text`` and ``label``.
        test_source: the test examples, with the same columns.
        test_rows: use only the first ``test_rows`` test examples.
        new_tokens: maximum length of a generation, in tokens.
        instruction: the instruction of every prompt; should list the four classes.
        match: ``contains`` accepts an answer that contains an accepted form; null requires nothing else.
    """

    name: ClassVar[str] = "agnews"
    version: ClassVar[int] = 1
    labels: ClassVar[tuple[str, ...]] = tuple(CLASSES)

    train_source: Source
    test_source: Source
    test_rows: int = 1000
    new_tokens: int = 16
    instruction: str = (
        "Sort the news article in the input into one of four classes. Reply with the class only.\n\n"
        "World\nSports\nBusiness\nSci/Tech"
    )
    match: Match | None = None

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return counts(self, "test_rows", "new_tokens")

    @property
    def train(self) -> AgNewsRows:
        """All training examples, in their published order."""
        return AgNewsRows(source=self.train_source, instruction=self.instruction)

    @property
    def test(self) -> AgNewsRows:
        """The first test examples."""
        return AgNewsRows(source=self.test_source, rows=self.test_rows, instruction=self.instruction)

    def grade(self, examples: Sequence[Example], answers: Sequence[str]) -> list[Score]:
        """Score each answer: 1 if it matches the class name or its accepted variant, otherwise 0."""
        return [
            matched(answer, (example.output, CLASSES[example.output]), self.match)
            for example, answer in zip(examples, answers, strict=True)
        ]

    def vote(self, answer: str) -> str | None:
        """Return the class that an answer names, by the rule of ``grade``; None if it names none or several."""
        return named_class(answer, {name: (name, variant) for name, variant in CLASSES.items()}, self.match)
