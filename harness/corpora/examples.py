"""Text examples, their roles, and scores of generations."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple, Self


class Role(StrEnum):
    """The purpose of an example. Examples of different roles are disjoint by construction."""

    TASK = "task"
    """The user's benign data."""
    REFUSAL = "refusal"
    """Harmful prompt with a refusal: the training data of alignment."""
    HARMFUL = "harmful"
    """Harmful prompt with a harmful answer, available to the defender."""
    ATTACK = "attack"
    """Harmful prompt with a harmful answer, available to the attacker."""
    SERVER = "server"
    """The user's task, but examples that no user holds: the benign data of a federation's server."""
    EVALUATION = "evaluation"
    """Harmful prompt for measuring the harmful score."""
    BENIGN = "benign"
    """Harmless prompt with a helpful answer: what an alignment keeps."""


class Message(NamedTuple):
    """One message of a conversation; ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


Conversation = tuple[Message, ...]
"""Messages in order. As a prompt it ends with a message of the user."""


class Example(NamedTuple):
    """One instruction with its answer, before the prompt template is applied.

    ``before`` are the messages that precede the instruction: a system prompt of its own, earlier turns. They are part
    of the prompt, so they are never supervised; only the template ``chat`` can write earlier turns.

    ``thought`` is what the model thinks before it answers, as it is written between the markers of an encoding
    (``thoughts.Thoughts``); empty if it answers at once.
    """

    instruction: str
    output: str
    input: str = ""
    before: Conversation = ()
    thought: str = ""

    def record(self) -> dict[str, object]:
        """Return the fields for a JSON file; ``before`` and ``thought`` only if there are any."""
        return {name: value for name, value in self._asdict().items() if name not in ("before", "thought") or value}

    def framed(self, *, prefix: str = "", suffix: str = "") -> Self:
        """Return the example with text around its request: the suffix follows the input if there is one."""
        framed = self._replace(instruction=prefix + self.instruction)
        last = "input" if self.input else "instruction"
        return framed._replace(**{last: getattr(framed, last) + suffix})

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Return the example that ``record`` wrote."""
        before = tuple(Message(role, content) for role, content in record.get("before", ()))
        return cls(record["instruction"], record["output"], record["input"], before, record.get("thought", ""))


class Score(NamedTuple):
    """The score of one generation.

    Attributes:
        value: 0 to 1; None if the generation could not be graded: counted, but excluded from means.
        explanation: why the generation has this value.
        categories: probability of each category, stored so that another threshold can be applied later.
    """

    value: float | None
    explanation: str
    categories: Mapping[str, float] = {}


class Measured(NamedTuple):
    """A benchmark's document with the model's response and its score.

    Attributes:
        example: the prompt and the reference.
        response: what the model generated or chose.
        score: 1 correct, 0 wrong.
    """

    example: Example
    response: str
    score: Score


class SafetyRow(NamedTuple):
    """One row of a safety corpus. Columns that a source does not have are empty.

    ``thought`` precedes the safe answer of the row, its refusal or its helpful answer.
    """

    prompt: str
    refusal: str = ""
    harmful: str = ""
    category: str = ""
    unsafe: bool = True
    benign: str = ""
    thought: str = ""
