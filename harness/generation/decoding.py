"""Decoding settings."""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

from harness.engine.checks import counts
from harness.errors import Problem


@final
@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Greedy decoding.

    Attributes:
        max_prompt: longer prompts are truncated to this many tokens in the middle: the tokenizer's prefix (BOS) and the
            end of the prompt, which asks for the answer, are kept.
        engine: null is the fastest built-in path; which one runs is not part of the key, and the report compares it.
            A named engine is part of the key: its rounding differs.
    """

    name: ClassVar[str] = "greedy"
    version: ClassVar[int] = 1
    max_prompt: int = 512
    engine: Literal["vllm"] | None = None

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return counts(self, "max_prompt")
