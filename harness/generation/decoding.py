"""How answers are generated, as a setting."""

from dataclasses import dataclass
from typing import ClassVar, final

from harness.engine.checks import counts
from harness.errors import Problem


@final
@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Greedy decoding.

    Attributes:
        max_prompt: longer prompts are cut to this many tokens: what the tokenizer puts before a text stays, and so does
            the end, which asks for the answer.
    """

    name: ClassVar[str] = "greedy"
    version: ClassVar[int] = 1
    max_prompt: int = 512

    def problems(self) -> list[Problem]:
        """Range errors."""
        return counts(self, "max_prompt")
