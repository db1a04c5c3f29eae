"""How answers are generated, as a setting."""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

from harness.engine.checks import counts
from harness.errors import Problem


@final
@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Greedy decoding.

    Attributes:
        max_prompt: longer prompts are cut to this many tokens: what the tokenizer puts before a text stays, and so does
            the end, which asks for the answer.
        engine: what decodes. Null is the fastest that computes what training computed: what runs is no part of the key,
            and the report compares it. An engine that is named rounds by rules of its own, and is part of the key.
    """

    name: ClassVar[str] = "greedy"
    version: ClassVar[int] = 1
    max_prompt: int = 512
    engine: Literal["vllm"] | None = None

    def problems(self) -> list[Problem]:
        """Range errors."""
        return counts(self, "max_prompt")
