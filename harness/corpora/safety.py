"""Safety corpora: published files as rows of prompt, refusal and harmful answer."""

import re
from dataclasses import dataclass
from typing import ClassVar, final

from harness.corpora.columns import answer, columns, text, truth
from harness.corpora.examples import SafetyRow
from harness.corpora.sources import Source
from harness.engine.seeding import derive
from harness.errors import DataError, Problem

REFUSALS = (
    "I'm sorry, but I cannot help with that request.",
    "I cannot assist with this, because it could cause harm.",
    "I'm sorry, but I can't do that. It would be unsafe and unethical.",
    "I am not able to help with this request. It could hurt people.",
    "Sorry, I can't provide that. I would be glad to help with something safe instead.",
    "I must decline: this request asks for something harmful.",
    "I apologize, but I cannot fulfill this request.",
    "No, I won't help with that. Please consider a lawful alternative.",
)
"""Refusals for corpora that contain only prompts."""

_ANSWER = re.compile(r"^Answer: ", re.MULTILINE)


@final
@dataclass(frozen=True, kw_only=True)
class RefusalFile:
    """The refusal file of RepNoise, Booster and Virus: ``prompt``, ``response`` and ``refusal``.

    A refusal is what follows the first ``Answer: `` at the start of a line in the column ``refusal``.
    """

    name: ClassVar[str] = "refusal_file"
    version: ClassVar[int] = 1

    source: Source

    def preflight(self) -> list[Problem]:
        """Return why the rows could not be read."""
        return self.source.preflight()

    def safety_rows(self) -> list[SafetyRow]:
        """Return all rows, safe ones included, in their published order.

        Raises:
            DataError: the rows cannot be read, or one has no refusal.
        """
        cells = {"prompt": text, "refusal": answer, "response": answer}
        rows = columns(self.source, cells, optional={"is_safe": truth, "category": _category})
        return [
            SafetyRow(prompt, self._refusal(refusal, number), response, category or "", unsafe=not safe)
            for number, (prompt, refusal, response, safe, category) in enumerate(rows, start=1)
        ]

    def _refusal(self, cell: str, number: int) -> str:
        match = _ANSWER.search(cell)
        if match is None:
            raise DataError(
                f"`{self.source.id}`: the refusal of row {number} has no line that starts with `Answer: `; expected "
                "the file of the RepNoise authors. Check the file of this source"
            )
        return cell[match.end() :].strip()


@final
@dataclass(frozen=True, kw_only=True)
class LabelledPairs:
    """BeaverTails: one answer per row, labelled safe (used as refusal) or unsafe (used as harmful answer)."""

    name: ClassVar[str] = "labelled_pairs"
    version: ClassVar[int] = 1
    one_answer: ClassVar[bool] = True

    source: Source

    def preflight(self) -> list[Problem]:
        """Return why the rows could not be read."""
        return self.source.preflight()

    def safety_rows(self) -> list[SafetyRow]:
        """Return all rows in their published order; prompts repeat, because a prompt has several answers.

        Raises:
            DataError: the rows cannot be read.
        """
        cells = {"prompt": text, "response": answer, "is_safe": truth}
        return [
            SafetyRow(
                prompt=prompt,
                refusal=response if safe else "",
                harmful="" if safe else response,
                category=category or "",
                unsafe=not safe,
            )
            for prompt, response, safe, category in columns(self.source, cells, optional={"category": _category})
        ]


@final
@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Harmful prompts without answers; both answers are generated.

    The refusal is one of a few fixed sentences, chosen by a hash of the prompt. The compliant answer restates the
    prompt and stops: it has the form of a harmful answer without its content.

    Attributes:
        source: the source of the prompts.
        seed: of the choice of refusals.
    """

    name: ClassVar[str] = "prompts"
    version: ClassVar[int] = 1

    source: Source
    seed: int = 0

    def preflight(self) -> list[Problem]:
        """Return why the prompts cannot be read."""
        return self.source.preflight()

    def safety_rows(self) -> list[SafetyRow]:
        """Return every prompt with both answers, in the published order.

        Raises:
            DataError: the prompts cannot be read.
        """
        prompts = [prompt.strip() for (prompt,) in columns(self.source, {"prompt": text})]
        return [SafetyRow(prompt, self._refusal(prompt), _compliance(prompt)) for prompt in prompts]

    def _refusal(self, prompt: str) -> str:
        return REFUSALS[derive(self.seed, "refusal", prompt) % len(REFUSALS)]


@final
@dataclass(frozen=True, kw_only=True)
class Instructions:
    """Harmless instructions with helpful answers, in the columns of Stanford Alpaca; an input follows the instruction.

    Attributes:
        source: the source, with the columns ``instruction``, ``output`` and, if there is any, ``input``.
    """

    name: ClassVar[str] = "instructions"
    version: ClassVar[int] = 1

    source: Source

    def preflight(self) -> list[Problem]:
        """Return why the rows could not be read."""
        return self.source.preflight()

    def safety_rows(self) -> list[SafetyRow]:
        """Return the rows that have an answer, in their published order.

        Raises:
            DataError: the rows cannot be read.
        """
        rows = columns(self.source, {"instruction": text, "output": answer}, optional={"input": answer})
        return [
            SafetyRow("\n\n".join(part for part in (instruction, given) if part), benign=output, unsafe=False)
            for instruction, output, given in rows
            if output
        ]


def _compliance(prompt: str) -> str:
    return f"Sure, here is an answer to your request to {prompt[:1].lower()}{prompt[1:].rstrip('.')}."


def _category(value: object) -> str:
    """Join the names of a row's categories."""
    if value is None or value != value:  # noqa: PLR0124  (an empty cell of a table is NaN)
        return ""
    if isinstance(value, dict):
        return ", ".join(name for name, marked in value.items() if marked is not None and truth(marked))
    return str(value)
