"""Prompt templates: the texts of ``alpaca`` and ``plain``; that of ``chat`` is the tokenizer's own, see ``chat``.

The Alpaca template is that of Taori et al., 2023, and of every reference repository. Booster and its descendants end
the prompt with a newline after the response marker, Vaccine and Lisa do not. Adapters trained with one do not work with
the other, so the newline is a setting and part of the identity.
"""

from enum import StrEnum

from harness.corpora.examples import Conversation, Example, Message
from harness.errors import DataError

_MARKER = "### Response:"
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    f"### Instruction:\n{{instruction}}\n\n{_MARKER}"
)
_ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    f"### Instruction:\n{{instruction}}\n\n### Input:\n{{input}}\n\n{_MARKER}"
)


class Template(StrEnum):
    """Prompt templates."""

    ALPACA = "alpaca"
    """Alpaca, with and without input."""
    PLAIN = "plain"
    """Instruction, input and a colon: the shortest prompt, for tiny models."""
    CHAT = "chat"
    """The chat template of the model's tokenizer, for instruct models."""


def prompt_of(example: Example, *, template: Template, newline: bool, system: str | None = None) -> str:
    """Return the prompt of an example, by a template other than ``chat``.

    A system prompt is text before the prompt; that of the example itself has precedence.

    Raises:
        DataError: earlier turns precede the instruction, for which these templates have no place.
    """
    for message in example.before:
        if message.role != "system":
            raise DataError(
                f"an example has a turn before its instruction, which the template `{template}` cannot write; expected "
                "`chat` for such data. Set `model.encoding.template=chat` with an instruct model"
            )
        system = message.content
    end = "\n" if newline else ""
    if template is Template.PLAIN:
        return " ".join(part for part in (system, example.instruction, example.input, ":") if part) + end
    text = _ALPACA_WITH_INPUT if example.input else _ALPACA
    prompt = text.format(instruction=example.instruction, input=example.input) + end
    return f"{system}\n\n{prompt}" if system else prompt


def conversation_of(example: Example, *, system: str | None) -> Conversation:
    """Return the prompt of an example as messages.

    The input follows the instruction after a blank line. ``system`` precedes an example without a system prompt of its
    own.
    """
    own = any(message.role == "system" for message in example.before)
    first = (Message("system", system),) if system is not None and not own else ()
    request = "\n\n".join(part for part in (example.instruction, example.input) if part)
    return (*first, *example.before, Message("user", request))


def turn_of(row: Example) -> Example:
    """Return an uploaded row as a guard reads it: one turn of the user and one of the assistant.

    The user's turn is everything that precedes the answer, separated by blank lines; a thought is part of the
    assistant's.
    """
    asked = "\n\n".join(message.content for message in conversation_of(row, system=None))
    return Example(asked, "\n\n".join(part for part in (row.thought.strip(), row.output) if part))


def separator_of(*, template: Template, newline: bool) -> str:
    """Return the text between a prompt and its answer in training: a space after the plain colon, otherwise nothing."""
    return " " if template is Template.PLAIN and not newline else ""


def marker_of(template: Template) -> str | None:
    """Return the response marker, which precedes an answer; None if the template has none."""
    return _MARKER if template is Template.ALPACA else None
