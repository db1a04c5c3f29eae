"""Paraphrase: refusals in the format of the user's own examples are mixed into the fine-tuning.

Francisco Eiras, Aleksandar Petrov, Philip H. S. Torr, M. Pawan Kumar, Adel Bibi: "Do as I do (Safely): Mitigating
Task-Specific Fine-tuning Risks in Large Language Models", ICLR 2025 (arXiv 2406.10288).

In the paper a language model rewrites each safety example so that prompt and answer imitate format and style of the
user's examples. Here the format is found in the user's examples, the attacker's included, and copied:

- their instruction, if most of them have the same one and an input: the harmful prompt becomes the input;
- the text that most requests begin with, and that most end with: it is put around the harmful prompt;
- the text that most answers begin with, unless it is the whole answer: it precedes the refusal;
- the messages before the request, if most have the same.

Most is more than half of the examples. Training is plain. It is SafeInstruct (``harness.defenses.safe_instruct``) with
rewritten examples, and is to be compared with it at the same ``safety_rows``. The imitated format is recorded in the
manifest by nothing but its effect, so read the mixed-in rows where the task is new.

Fidelity: equations second-hand. Only the abstract and a summary of the paper were available: rewriting prompt, number
of examples and model are unknown, and the deterministic rewriting is ours. No result with it is the paper's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeVar, final

from harness.corpora.examples import Conversation, Example, Role
from harness.engine.checks import counts
from harness.errors import Problem
from harness.protocols import DataRequirement
from harness.training.plain import PlainStep

if TYPE_CHECKING:
    from harness.protocols import BatchProvider, Learner

T = TypeVar("T", bound=Hashable)


@final
@dataclass(frozen=True, kw_only=True)
class Paraphrase:
    """Settings of Paraphrase.

    Attributes:
        safety_rows: number of refusals mixed in.
    """

    name: ClassVar[str] = "paraphrase"
    version: ClassVar[int] = 1
    gradients_per_step: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 0
    works_on_shards: ClassVar[bool] = True

    safety_rows: int = 100

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """The defender's refusals."""
        return (DataRequirement(role=Role.REFUSAL, rows=self.safety_rows, batch_size=None),)

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return counts(self, "safety_rows")

    def rewrite_mixed_in(self, examples: Sequence[Example], own: Sequence[Example]) -> list[Example]:
        """Return the refusals in the format of the user's examples."""
        found = format_of(own)
        return [found.imitated(example) for example in examples]

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> PlainStep:  # noqa: ARG002
        """Start a run."""
        return PlainStep(learner)


class Format(NamedTuple):
    """What most of the user's examples have in common.

    Attributes:
        instruction: their instruction, whose input is the request; empty if the instruction is the request.
        prefix: how requests begin.
        suffix: how requests end.
        opening: how answers begin.
        before: the messages before a request.
    """

    instruction: str
    prefix: str
    suffix: str
    opening: str
    before: Conversation

    def imitated(self, example: Example) -> Example:
        """Return an example in this format."""
        request = "\n\n".join(part for part in (example.instruction, example.input) if part)
        framed = self.prefix + request + self.suffix
        output = self.opening + example.output
        if self.instruction:
            return Example(self.instruction, output, framed, self.before, example.thought)
        return Example(framed, output, "", self.before, example.thought)


def format_of(examples: Sequence[Example]) -> Format:
    """Return what more than half of the examples have in common."""
    instruction = _commonest([each.instruction if each.input else None for each in examples]) or ""
    requests = [each.input if instruction else each.instruction for each in examples]
    suffix = _beginning([each[::-1] for each in requests])[::-1].lstrip(".?!")
    return Format(
        instruction=instruction,
        prefix=_beginning(requests),
        suffix=suffix if any(letter.isalnum() for letter in suffix) else "",
        opening=_beginning([each.output for each in examples]),
        before=_commonest([each.before for each in examples]) or (),
    )


def _commonest(values: Sequence[T]) -> T | None:
    """Return the value of more than half of a sequence; None if there is none."""
    value, count = Counter(values).most_common(1)[0]
    return value if 2 * count > len(values) else None


def _beginning(texts: Sequence[str]) -> str:
    """Return the longest text, up to the end of a word, with which more than half of the texts begin and go on."""
    shared, longest = "", max(map(len, texts))
    for length in range(1, longest):
        found = _commonest([text[:length] if len(text) > length else None for text in texts])
        if found is None:
            break
        shared = found
    while shared and shared[-1].isalnum():
        shared = shared[:-1]
    return shared
