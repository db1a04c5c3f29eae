"""Probes: the evaluation prompts once more, asked in another way.

A backdoor shows only with its trigger, and an attack by identity shift only under its system prompt. An attack or a
defense that has to be evaluated so declares probes (``protocols.HasProbes``); for each of them a cell gets generations
and grades of its own.
"""

from dataclasses import dataclass, fields, replace
from typing import ClassVar, final

from harness.corpora.encode import Encoding
from harness.corpora.template import Template
from harness.corpora.thoughts import Thoughts

PROBE = "probe"
"""Name of the column with a probe's label; a cell of a probe has it among its swept values."""


@final
@dataclass(frozen=True, kw_only=True)
class EncodingChange:
    """In what an encoding for evaluation differs from the one of training; null keeps the value of the latter.

    Attributes:
        template: the prompt template.
        system: the system prompt.
        prefix: text directly before the instruction.
        suffix: text directly after the instruction, or after the input of an example that has one.
        thoughts: the markers of thought and answer; a think marker with words behind it begins every thought with them.
    """

    name: ClassVar[str] = "encoding_change"
    version: ClassVar[int] = 1
    template: Template | None = None
    system: str | None = None
    prefix: str | None = None
    suffix: str | None = None
    thoughts: Thoughts | None = None

    def of(self, encoding: Encoding) -> Encoding:
        """Return an encoding with these changes."""
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(encoding, **{name: value for name, value in found.items() if value is not None})


@final
@dataclass(frozen=True, kw_only=True)
class Probe:
    """A question of its own to the evaluated models.

    Attributes:
        label: names the question in tables; unique among the probes of a cell.
        change: how the question differs from that of the evaluation.
        accuracy: also measure the accuracy on the task when asked so, and over-refusal if the cell measures it.
    """

    label: str
    change: EncodingChange
    accuracy: bool = False
