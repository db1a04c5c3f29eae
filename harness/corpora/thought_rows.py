"""Refusals after a thought: the two alignments of Safety Tax (Huang et al., arXiv 2503.00555).

The texts are those that the authors' data builders write (repository git-disl/Safety-Tax at commit 6f25209, folder
``data``); markers of thought and answer belong to the encoding. In front of an answer stands ``Answer: ``, unless the
text has it already.
"""

from dataclasses import dataclass
from typing import ClassVar, final

from harness.corpora.columns import answer, columns, text, truth
from harness.corpora.examples import SafetyRow
from harness.corpora.sources import Source
from harness.engine.checks import counts
from harness.errors import DataError, Problem

THOUGHT = " I should not answer this question!"
"""The thought of every row of DirectRefusal, without a newline before the answer marker, as published."""
CLOSING_TAG = "</think>"
"""What ends the thoughts of an answer of SafeChain; the opening tag is not in its file."""

_MARK = "\nAnswer: "


@final
@dataclass(frozen=True, kw_only=True)
class DirectRefusal:
    """DirectRefusal: the refusal file of RepNoise, each refusal after one fixed, short thought.

    The prompt is the question as the column ``refusal`` repeats it, the answer what follows it there.

    Attributes:
        source: the refusal file, with the columns ``refusal`` and ``response``.
        thought: the thought of every row.
    """

    name: ClassVar[str] = "direct_refusal"
    version: ClassVar[int] = 1
    carries_thoughts: ClassVar[bool] = True

    source: Source
    thought: str = THOUGHT

    def preflight(self) -> list[Problem]:
        """Return why the rows could not be read."""
        return self.source.preflight()

    def safety_rows(self) -> list[SafetyRow]:
        """Return all rows, safe ones included, in their published order.

        Raises:
            DataError: the rows cannot be read, or one has no refusal.
        """
        rows = columns(self.source, {"refusal": text, "response": answer}, optional={"is_safe": truth})
        return [self._row(number, *row) for number, row in enumerate(rows, start=1)]

    def _row(self, number: int, cell: str, response: str, safe: bool | None) -> SafetyRow:
        question, *answers = cell.split(_MARK)
        if not answers:
            raise DataError(
                f"`{self.source.id}`: the refusal of row {number} has no line that starts with `Answer: `; expected "
                "the file of the RepNoise authors. Check the file of this source"
            )
        prompt = question.replace("Question: ", "")
        return SafetyRow(prompt, _answered(answers[0]), response, unsafe=not safe, thought=self.thought)


@final
@dataclass(frozen=True, kw_only=True)
class SafeChain:
    """SafeChain (Jiang et al., arXiv 2502.12025): answers of a reasoning model to harmful prompts, with its thoughts.

    Rows whose answer never ends its thoughts are left out after the first ``first`` of the label were selected, as
    published: fewer may remain.

    Attributes:
        source: the source, with the columns ``instruction``, ``response`` and ``label``.
        label: the kind of prompts.
        first: how many rows of the label are selected; null selects all.
    """

    name: ClassVar[str] = "safechain"
    version: ClassVar[int] = 1
    one_answer: ClassVar[bool] = True
    carries_thoughts: ClassVar[bool] = True

    source: Source
    label: str = "vanilla_harmful"
    first: int | None = 1000

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return counts(self, "first")

    def preflight(self) -> list[Problem]:
        """Return why the rows could not be read."""
        return self.source.preflight()

    def safety_rows(self) -> list[SafetyRow]:
        """Return the selected rows that have an answer, in their published order.

        Raises:
            DataError: the rows cannot be read.
        """
        rows = columns(self.source, {"instruction": text, "response": answer, "label": text})
        selected = [(prompt, response) for prompt, response, label in rows if label == self.label][: self.first]
        return [
            SafetyRow(prompt, _answered(parts[1]), thought=f"\n{parts[0].strip()}\n")
            for prompt, response in selected
            if len(parts := response.split(CLOSING_TAG)) > 1
        ]


def _answered(refusal: str) -> str:
    return (refusal if "Answer:" in refusal else f"Answer: {refusal}").strip()
