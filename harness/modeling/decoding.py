"""How answers are generated, as a setting."""

from dataclasses import dataclass
from typing import ClassVar, final

from harness.ranges import counts


@final
@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Greedy decoding.

    Attributes:
        max_prompt: longer prompts are cut on the left to this many tokens, so that what asks for the answer stays.
    """

    name: ClassVar[str] = "greedy"
    version: ClassVar[int] = 1
    max_prompt: int = 512

    def problems(self) -> list[str]:
        """Range errors."""
        return counts(self, "max_prompt")
