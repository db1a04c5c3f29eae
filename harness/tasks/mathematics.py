"""Competition mathematics: MATH-500 (Lightman et al., 2023) and AIME 2024, graded by rules.

The prompt is the problem alone, as in s1's evaluation, which Safety Tax (arXiv 2503.00555) uses. There gpt-4o-mini, at
a temperature of 0.5 and told to be lenient, decides whether an answer equals the reference; here Math-Verify does,
which parses both with SymPy. A solution without a final answer is wrong.

The user fine-tunes on the examples of another task, ``user``: neither benchmark has training examples.
"""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar, final

from harness.corpora.columns import answer, columns, text, unreadable
from harness.corpora.examples import Example, Score
from harness.corpora.final_answer import final_answer
from harness.corpora.sources import Source
from harness.engine.checks import counts
from harness.errors import ConfigError, Problem
from harness.protocols import ExampleSource, Task

SECONDS = 5
"""Maximum time for parsing an answer, and for comparing two of them."""


@final
@dataclass(frozen=True, kw_only=True)
class Problems:
    """Problems with their final answers.

    Attributes:
        source: the source, with the columns ``problem`` and ``answer``.
        rows: use only the first ``rows`` problems; null uses all.
    """

    name: ClassVar[str] = "mathematics_problems"
    version: ClassVar[int] = 1

    source: Source
    rows: int | None = None

    def preflight(self) -> list[Problem]:
        """Return why the problems cannot be read or graded."""
        return _missing() or unreadable(self.source, self)

    def examples(self) -> list[Example]:
        """Read the problems in their published order.

        Raises:
            DataError: the source is missing, altered, or has other columns.
        """
        rows = columns(self.source, {"problem": text, "answer": _written}, limit=self.rows)
        return [Example(instruction=problem, output=reference) for problem, reference in rows]


@final
@dataclass(frozen=True, kw_only=True)
class Mathematics:
    """Problems with a final answer that is an expression.

    Attributes:
        user: the task whose training examples the user fine-tunes on.
        source: the problems, with the columns ``problem`` and ``answer``.
        test_rows: use only the first ``test_rows`` problems; null uses all.
        new_tokens: maximum length of a generation, in tokens.
    """

    name: ClassVar[str] = "mathematics"
    version: ClassVar[int] = 1

    user: Task
    source: Source
    test_rows: int | None = None
    new_tokens: int = 5000

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return counts(self, "test_rows", "new_tokens")

    @property
    def train(self) -> ExampleSource:
        """The user's training examples."""
        return self.user.train

    @property
    def test(self) -> Problems:
        """The problems."""
        return Problems(source=self.source, rows=self.test_rows)

    def grade(self, examples: Sequence[Example], answers: Sequence[str]) -> list[Score]:
        """Score each answer: 1 if its final answer equals the reference, otherwise 0.

        Raises:
            ConfigError: Math-Verify is not installed.
        """
        if missing := _missing():
            raise ConfigError(missing)
        return [_score(example.output, each) for example, each in zip(examples, answers, strict=True)]


def _missing() -> list[Problem]:
    """Return an error if the package that compares answers is not installed."""
    if find_spec("math_verify") is not None:
        return []
    reason = "answers are compared by Math-Verify, which is missing; expected the package math-verify"
    return [Problem("task", f"{reason}. Install it: `pip install 'harness[math]'`")]


def equal(reference: str, found: str) -> bool:
    """Return whether two expressions are equal, as LaTeX or plain; what cannot be compared in time is unequal."""
    from math_verify import parse, verify

    # The library's time limit is a signal, which only the main thread of a process receives.
    limit = SECONDS if threading.current_thread() is threading.main_thread() else None
    # Its errors are ours: an answer that cannot be parsed is a wrong one, and no cause for a page of warnings.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    # What is no box may be an expression within a sentence, which the library finds between its dollar signs.
    in_text = any(sign in found for sign in ("$", "\\(", "\\["))
    gold = parse(f"\\boxed{{{reference}}}", parsing_timeout=limit)
    given = parse(found if in_text else f"\\boxed{{{found}}}", parsing_timeout=limit)
    return bool(gold) and bool(given) and bool(verify(gold, given, timeout_seconds=limit))


def _score(reference: str, answered: str) -> Score:
    found = final_answer(answered)
    if found is None:
        return Score(0.0, "no final answer")
    return Score(float(equal(reference, found)), f"{found}, expected {reference}")


def _written(value: object) -> str:
    """Parse a text or an integer, as a text."""
    return str(value) if type(value) is int else text(answer(value))
