"""AG News: which of four subjects a news article is about.

Zhang et al., 2015. Prompt, targets and scoring follow Booster: the article is the input, the instruction lists the
four classes, and an answer counts if it is the class's name, alone, as listed or in its accepted lower-case form. That
form is ``sci`` for the fourth class, as published: ``sci/tech`` does not count.

Deviations: the wording of the instruction is ours, and the answer is cut at 16 new tokens instead of 200; a right
answer is a few tokens long, so a longer answer is wrong wherever it is cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from harness.corpora.columns import class_of, columns, text, unreadable
from harness.corpora.examples import Example, Score
from harness.corpora.sources import Source
from harness.engine.checks import counts
from harness.errors import Problem

CLASSES = {"World": "world", "Sports": "sports", "Business": "business", "Sci/Tech": "sci"}
"""The targets by label, and the other form that counts."""


@final
@dataclass(frozen=True, kw_only=True)
class AgNewsRows:
    """Rows of the task.

    Attributes:
        source: where they are: ``text`` and ``label``.
        instruction: what every prompt asks for.
        rows: at most how many, from the first on; null for all.
    """

    name: ClassVar[str] = "agnews_rows"
    version: ClassVar[int] = 1

    source: Source
    instruction: str
    rows: int | None = None

    def preflight(self) -> list[Problem]:
        """Return why the rows could not be read; those that are on this machine are read to find out."""
        return unreadable(self.source, self)

    def examples(self) -> list[Example]:
        """Read the rows in their published order.

        Raises:
            DataError: they are missing, altered, or rows of another kind.
        """
        return [
            Example(instruction=self.instruction, input=article, output=name)
            for article, name in columns(
                self.source, {"text": text, "label": class_of(tuple(CLASSES))}, limit=self.rows
            )
        ]


@final
@dataclass(frozen=True, kw_only=True)
class AgNews:
    """The news task.

    Attributes:
        train_source: the rows a user fine-tunes on: ``text`` and ``label``.
        test_source: the rows on which accuracy is measured.
        test_rows: at most how many of them are used, from the first on.
        new_tokens: longest answer to generate, in tokens.
        instruction: what every prompt asks for; should list the four classes.
    """

    name: ClassVar[str] = "agnews"
    version: ClassVar[int] = 1

    train_source: Source
    test_source: Source
    test_rows: int = 1000
    new_tokens: int = 16
    instruction: str = (
        "Sort the news article in the input into one of four classes. Reply with the class only.\n\n"
        "World\nSports\nBusiness\nSci/Tech"
    )

    def problems(self) -> list[Problem]:
        """Return every setting out of range."""
        return counts(self, "test_rows", "new_tokens")

    @property
    def train(self) -> AgNewsRows:
        """All training rows in their published order."""
        return AgNewsRows(source=self.train_source, instruction=self.instruction)

    @property
    def test(self) -> AgNewsRows:
        """The first test rows."""
        return AgNewsRows(source=self.test_source, rows=self.test_rows, instruction=self.instruction)

    def grade(self, examples: Sequence[Example], answers: Sequence[str]) -> list[Score]:
        """Grade 1 an answer that is the class's name or its accepted short form, and nothing else."""
        return [_grade(example.output, answer) for example, answer in zip(examples, answers, strict=True)]


def _grade(target: str, answer: str) -> Score:
    right = answer.strip() in (target, CLASSES[target])
    return Score(float(right), "exact" if right else f"is not {target}")
