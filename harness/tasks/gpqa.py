"""GPQA diamond (Rein et al., 2023): 198 questions of experts with four choices each, graded by the letter.

Prompt and order of the wrong and right choices before shuffling are those of s1's evaluation, which Safety Tax (arXiv
2503.00555) uses. It shuffles with the global generator of random numbers; here the order has a seed of its own. It asks
gpt-4o-mini for the letter where it cannot be read off, and counts an answer without one as A, which is right in a
quarter of the questions; here such an answer is wrong.

The user fine-tunes on the examples of another task, ``user``: all questions are test questions.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from harness.corpora.columns import columns, text, unreadable
from harness.corpora.examples import Example, Score
from harness.corpora.final_answer import final_answer
from harness.corpora.sources import Source
from harness.engine.checks import counts
from harness.engine.seeding import generator
from harness.errors import Problem
from harness.protocols import ExampleSource, Task

LETTERS = ("A", "B", "C", "D")
_WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
_RIGHT = "Correct Answer"
# A letter alone, or before a sign that ends it, as in (B), **B** or \text{B}; `A pendulum swings` is no choice.
_LETTER = re.compile(r"[\s$({\[*]*(?:\\(?:text|mathrm|mathbf|textbf)\s*\{)?\s*\(?([A-Da-d])(?=\s*(?:[)\]}.,:;*$\n]|$))")


@final
@dataclass(frozen=True, kw_only=True)
class Questions:
    """Questions with four choices in a seeded order; the output is the letter of the right one.

    Attributes:
        source: the source, with the columns of the authors' file.
        rows: use only the first ``rows`` questions; null uses all.
        shuffle: seed of the order of the choices.
    """

    name: ClassVar[str] = "gpqa_questions"
    version: ClassVar[int] = 1

    source: Source
    rows: int | None = None
    shuffle: int = 0

    def preflight(self) -> list[Problem]:
        """Return why the questions cannot be read; a source that is on this machine is read as a check."""
        return unreadable(self.source, self)

    def examples(self) -> list[Example]:
        """Read the questions in their published order.

        Raises:
            DataError: the source is missing, altered, or has other columns.
        """
        rng = generator(self.shuffle, "gpqa", "choices")
        cells = dict.fromkeys(("Question", *_WRONG, _RIGHT), text)
        examples = []
        for question, *choices in columns(self.source, cells, limit=self.rows):
            order = list(range(len(choices)))
            rng.shuffle(order)
            listed = "\n".join(f"{letter}) {choices[i]}" for letter, i in zip(LETTERS, order, strict=True))
            examples.append(Example(f"{question}\n\n{listed}", LETTERS[order.index(len(choices) - 1)]))
        return examples


@final
@dataclass(frozen=True, kw_only=True)
class Gpqa:
    """The questions, as a task.

    Attributes:
        user: the task whose training examples the user fine-tunes on.
        source: the questions.
        test_rows: use only the first ``test_rows`` questions; null uses all.
        shuffle: seed of the order of the choices.
        new_tokens: maximum length of a generation, in tokens.
    """

    name: ClassVar[str] = "gpqa"
    version: ClassVar[int] = 1

    user: Task
    source: Source
    test_rows: int | None = None
    shuffle: int = 0
    new_tokens: int = 5000

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return counts(self, "test_rows", "new_tokens")

    @property
    def train(self) -> ExampleSource:
        """The user's training examples."""
        return self.user.train

    @property
    def test(self) -> Questions:
        """The questions."""
        return Questions(source=self.source, rows=self.test_rows, shuffle=self.shuffle)

    def grade(self, examples: Sequence[Example], answers: Sequence[str]) -> list[Score]:
        """Score each answer: 1 if it chooses the right letter, otherwise 0."""
        return [_score(example.output, answer) for example, answer in zip(examples, answers, strict=True)]


def letter(answer: str) -> str | None:
    """Return the letter that an answer chooses, in its last box, after its last "Answer:", or as a whole; or None."""
    found = _LETTER.match(final_answer(answer) or answer)
    return found.group(1).upper() if found else None


def _score(reference: str, answer: str) -> Score:
    found = letter(answer)
    return Score(float(found == reference), f"{found or 'no letter'}, expected {reference}")
