"""GSM8K: grade-school math word problems.

Cobbe et al., 2021. Prompt, targets and scoring follow Booster: the question is the instruction, without an input; the
target is the worked solution with ``####`` replaced by a sentence (which leaves two spaces before the number, as
published). Numbers are compared by value: the first one after that sentence, or else the last one of the text; commas
are removed. The scripts of Vaccine and T-Vaccine append a sentence to every question (``suffix``).
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
"""The text before the final result."""

_NUMBER = re.compile(r"-?[0-9]+\.?[0-9]*")


@final
@dataclass(frozen=True, kw_only=True)
class Gsm8kRows:
    """Examples of the task.

    Attributes:
        source: the source, with the columns ``question`` and ``answer``.
        rows: use only the first ``rows`` examples; null uses all.
        suffix: text appended to every question; null appends nothing.
    """

    name: ClassVar[str] = "gsm8k_rows"
    version: ClassVar[int] = 1

    source: Source
    rows: int | None = None
    suffix: str | None = None

    def preflight(self) -> list[Problem]:
        """Return why the examples cannot be read; a source that is on this machine is read as a check."""
        return unreadable(self.source, self)

    def examples(self) -> list[Example]:
        """Read the examples in their published order.

        Raises:
            DataError: the source is missing, altered, or has other columns.
        """
        return [
            Example(instruction=question + (self.suffix or ""), output=answer.replace("####", MARKER))
            for question, answer in columns(self.source, {"question": text, "answer": text}, limit=self.rows)
        ]


@final
@dataclass(frozen=True, kw_only=True)
class Gsm8k:
    """The GSM8K task.

    Attributes:
        train_source: the training examples, with the columns ``question`` and ``answer``.
        test_source: the test examples, with the same columns.
        test_rows: use only the first ``test_rows`` test examples.
        new_tokens: maximum length of a generation, in tokens.
        suffix: text appended to every question, in training and test; null appends nothing.
    """

    name: ClassVar[str] = "gsm8k"
    version: ClassVar[int] = 1
    labels: ClassVar[tuple[str, ...]] = ()

    train_source: Source
    test_source: Source
    test_rows: int = 1000
    new_tokens: int = 200
    suffix: str | None = None

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return counts(self, "test_rows", "new_tokens")

    @property
    def train(self) -> Gsm8kRows:
        """All training examples, in their published order."""
        return Gsm8kRows(source=self.train_source, suffix=self.suffix)

    @property
    def test(self) -> Gsm8kRows:
        """The first test examples."""
        return Gsm8kRows(source=self.test_source, rows=self.test_rows, suffix=self.suffix)

    def grade(self, examples: Sequence[Example], answers: Sequence[str]) -> list[Score]:
        """Score each answer: 1 if its final number equals the reference's, otherwise 0."""
        return [_score(example.output, answer) for example, answer in zip(examples, answers, strict=True)]

    def vote(self, answer: str) -> str | None:
        """Return the final number of an answer, written in one way; None if it has none."""
        found = final_number(answer)
        # Adding zero turns -0.0, which is equal to 0.0, into it.
        return None if found is None else str(found + 0.0)


def final_number(text: str) -> float | None:
    """Return the first number after the marker, or else the last number of the text; None if there is none."""
    plain = text.replace(",", "")
    marked = _NUMBER.search(plain.split(MARKER)[1]) if MARKER in plain else None
    found = marked.group() if marked else next(reversed(_NUMBER.findall(plain)), None)
    return None if found is None else float(found)


def _score(reference: str, answer: str) -> Score:
    expected, found = final_number(reference), final_number(answer)
    if expected is None:
        return Score(None, "the reference contains no number")
    if found is None:
        return Score(0.0, "no number")
    return Score(float(found == expected), f"{found:g}, expected {expected:g}")
