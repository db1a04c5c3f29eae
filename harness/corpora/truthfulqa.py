"""TruthfulQA: 817 questions that people answer wrongly from habit or superstition, with correct answers.

Stephanie Lin, Jacob Hilton, Owain Evans: "TruthfulQA: Measuring How Models Mimic Human Falsehoods" (ACL 2022, arXiv
2109.07958). H3Fusion (arXiv 2411.17792) trains its honest expert on every correct answer of the first half of the
questions and evaluates on the second half. The file is sorted by topic, so the halves of the published order differ in
their topics; here every second question, which gives both halves all topics.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, final

from harness.corpora.columns import columns, text, unreadable
from harness.corpora.examples import Example
from harness.corpora.sources import Source
from harness.errors import Problem


@final
@dataclass(frozen=True, kw_only=True)
class TruthfulQA:
    """Questions of TruthfulQA, each with every correct answer.

    Attributes:
        source: the source, with the columns ``question`` and ``correct_answers``, a list of texts.
        test: the questions at odd positions, counted from 0, instead of those at even ones.
    """

    name: ClassVar[str] = "truthfulqa"
    version: ClassVar[int] = 1

    source: Source
    test: bool = False

    def preflight(self) -> list[Problem]:
        """Return why the questions cannot be read."""
        return unreadable(self.source, self)

    def examples(self) -> list[Example]:
        """Return one example per correct answer, in the published order of the questions.

        Raises:
            DataError: the source cannot be read.
        """
        rows = columns(self.source, {"question": text, "correct_answers": _answers})
        return [Example(question, answer) for question, answers in rows[int(self.test) :: 2] for answer in answers]


def _answers(value: object) -> list[str]:
    # A list in a Parquet file is read as an array.
    answers = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else []
    if not answers:
        raise ValueError(f"`{str(value)[:40]}` is no list of answers; expected one or more texts")
    return [text(each) for each in answers]
