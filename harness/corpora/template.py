"""The text around an instruction: where a prompt ends and its answer begins.

The Alpaca template is the one of Taori et al., 2023, and of every reference repository. Booster and its descendants end
the prompt with a newline after the response marker, Vaccine and Lisa do not: adapters are not exchangeable between the
two, so the newline is a setting and part of the identity.
"""

from enum import StrEnum

from harness.corpora.examples import Example

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
    """How a prompt is laid out."""

    ALPACA = "alpaca"
    """Alpaca, with and without input."""
    PLAIN = "plain"
    """Instruction, input and a colon: the shortest prompt, for models of a few layers."""


def prompt_of(example: Example, *, template: Template, newline: bool) -> str:
    """Return everything a model reads before it answers."""
    end = "\n" if newline else ""
    if template is Template.PLAIN:
        return " ".join(part for part in (example.instruction, example.input, ":") if part) + end
    text = _ALPACA_WITH_INPUT if example.input else _ALPACA
    return text.format(instruction=example.instruction, input=example.input) + end


def joint_of(*, template: Template, newline: bool) -> str:
    """Return what stands between a prompt and its answer in training: a space after a bare colon, otherwise nothing."""
    return " " if template is Template.PLAIN and not newline else ""


def marker_of(template: Template) -> str | None:
    """Return the text that announces an answer, and so ends the one before it; None if the template has none."""
    return _MARKER if template is Template.ALPACA else None
