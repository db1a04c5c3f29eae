"""GSM8K: grade-school arithmetic in words.

Cobbe et al., 2021. Prompt, targets and scoring follow Booster: the question is the instruction, without an input, and
the worked answer is the target, its ``####`` replaced by a sentence in words (which leaves two spaces before the
number, as published). Numbers are compared by value: the first after that sentence, or else the last of the text;
commas are dropped.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from harness.corpora.columns import columns, text, unreadable
from harness.corpora.examples import Example, Score
from harness.corpora.sources import Source
from harness.engine.checks import counts
from harness.errors import Problem

MARKER = "The final answer is: "
"""What stands before the result."""

_NUMBER = re.compile(r"-?[0-9]+\.?[0-9]*")


@final
@dataclass(frozen=True, kw_only=True)
class Gsm8kRows:
    """Rows of the task.

    Attributes:
        source: where they are: ``question`` and ``answer``.
        rows: at most how many, from the first on; null for all.
    """

    name: ClassVar[str] = "gsm8k_rows"
    version: ClassVar[int] = 1

    source: Source
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
            Example(instruction=question, output=answer.replace("####", MARKER))
            for question, answer in columns(self.source, {"question": text, "answer": text}, limit=self.rows)
        ]


@final
@dataclass(frozen=True, kw_only=True)
class Gsm8k:
    """The arithmetic task.

    Attributes:
        train_source: the rows a user fine-tunes on: ``question`` and ``answer``.
        test_source: the rows on which accuracy is measured.
        test_rows: at most how many of them are used, from the first on.
        new_tokens: longest answer to generate, in tokens.
    """

    name: ClassVar[str] = "gsm8k"
    version: ClassVar[int] = 1

    train_source: Source
    test_source: Source
    test_rows: int = 1000
    new_tokens: int = 200

    def problems(self) -> list[Problem]:
        """Return every setting out of range."""
        return counts(self, "test_rows", "new_tokens")

    @property
    def train(self) -> Gsm8kRows:
        """All training rows in their published order."""
        return Gsm8kRows(source=self.train_source)

    @property
    def test(self) -> Gsm8kRows:
        """The first test rows."""
        return Gsm8kRows(source=self.test_source, rows=self.test_rows)

    def grade(self, examples: Sequence[Example], answers: Sequence[str]) -> list[Score]:
        """Grade 1 an answer whose number equals the reference's."""
        return [_grade(example.output, answer) for example, answer in zip(examples, answers, strict=True)]


def final_number(text: str) -> float | None:
    """Return the first number after the marker, or else the last number of the text, or None without any."""
    plain = text.replace(",", "")
    marked = _NUMBER.search(plain.split(MARKER)[1]) if MARKER in plain else None
    found = marked.group() if marked else next(reversed(_NUMBER.findall(plain)), None)
    return None if found is None else float(found)


def _grade(reference: str, answer: str) -> Score:
    expected, found = final_number(reference), final_number(answer)
    if expected is None:
        return Score(None, "the reference holds no number")
    if found is None:
        return Score(0.0, "no number")
    return Score(float(found == expected), f"{found:g}, expected {expected:g}")
