"""SST-2: is a film review's sentence positive or negative.

Socher et al., 2013, in the GLUE split. Prompt, targets and scoring follow Booster: the sentence is the input, the
target is ``positive`` or ``negative``, and an answer counts if it is that word, alone, in lower case or capitalised.
The scoring is strict on purpose: a model that says more has lost the format it was trained on.

Deviations: the wording of the instruction is ours, and the answer is cut at 16 new tokens instead of 200; a right
answer is one word, so a longer answer is wrong wherever it is cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from harness.corpora.columns import class_of, columns, text, unreadable
from harness.corpora.examples import Example, Score
from harness.corpora.sources import Source
from harness.engine.checks import counts
from harness.errors import Problem

CLASSES = ("negative", "positive")
"""The targets, by label."""


@final
@dataclass(frozen=True, kw_only=True)
class Sst2Rows:
    """Rows of the task.

    Attributes:
        source: where they are: ``sentence`` and ``label``.
        instruction: what every prompt asks for.
        rows: at most how many, from the first on; null for all.
    """

    name: ClassVar[str] = "sst2_rows"
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
            Example(instruction=self.instruction, input=sentence, output=name)
            for sentence, name in columns(self.source, {"sentence": text, "label": class_of(CLASSES)}, limit=self.rows)
        ]


@final
@dataclass(frozen=True, kw_only=True)
class Sst2:
    """The sentiment task.

    Attributes:
        train_source: the rows a user fine-tunes on: ``sentence`` and ``label``.
        test_source: the rows on which accuracy is measured: the GLUE validation split, as the test split has no labels.
        test_rows: at most how many of them are used, from the first on.
        new_tokens: longest answer to generate, in tokens.
        instruction: what every prompt asks for.
    """

    name: ClassVar[str] = "sst2"
    version: ClassVar[int] = 1

    train_source: Source
    test_source: Source
    test_rows: int = 1000
    new_tokens: int = 16
    instruction: str = "Judge the sentiment of the input. Reply with one word only: positive or negative."

    def problems(self) -> list[Problem]:
        """Return every setting out of range."""
        return counts(self, "test_rows", "new_tokens")

    @property
    def train(self) -> Sst2Rows:
        """All training rows in their published order."""
        return Sst2Rows(source=self.train_source, instruction=self.instruction)

    @property
    def test(self) -> Sst2Rows:
        """The first test rows."""
        return Sst2Rows(source=self.test_source, rows=self.test_rows, instruction=self.instruction)

    def grade(self, examples: Sequence[Example], answers: Sequence[str]) -> list[Score]:
        """Grade 1 an answer that is the target word and nothing else."""
        return [_grade(example.output, answer) for example, answer in zip(examples, answers, strict=True)]


def _grade(target: str, answer: str) -> Score:
    right = answer.strip() in (target, target.capitalize())
    return Score(float(right), "exact" if right else f"is not {target}")
