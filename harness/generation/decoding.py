"""Decoding settings."""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

from harness.engine.checks import counts, not_negative, positive, shares
from harness.errors import Problem


@final
@dataclass(frozen=True, kw_only=True)
class ThoughtBudget:
    """How a model with thoughts is made to think and to answer; the markers are those of the encoding.

    The think marker follows the prompt. A thought ends with the answer marker, with a token that ends generations, or
    after ``tokens``; the answer marker is then forced, in the last case with the encoding's ``final``. The maximum
    length of a generation is that of its answer (Muennighoff et al. 2025, s1, arXiv 2501.19393, section 3).

    Attributes:
        tokens: maximum length of a thought, in tokens; null limits thought and answer together and forces no answer.
    """

    name: ClassVar[str] = "thought_budget"
    version: ClassVar[int] = 1
    tokens: int | None = None

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return not_negative(self, "tokens")


@final
@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Random decoding.

    The random numbers of a generation depend on the seed, the index of its prompt and that of the sample, and not on
    the other prompts. They are the same for every model.

    Attributes:
        temperature: divides the logits.
        top_p: share of the probability from whose most probable tokens is sampled; 1 samples from all.
        seed: of the random numbers.
        samples: generations per prompt. The grade of a prompt is the mean over its samples.
    """

    name: ClassVar[str] = "sampling"
    version: ClassVar[int] = 1
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    samples: int = 1

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = [*positive(self, "temperature", "top_p"), *counts(self, "samples"), *not_negative(self, "seed")]
        return found or shares(self, "top_p")


@final
@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Decoding, greedy unless it is sampled.

    Attributes:
        max_prompt: longer prompts are truncated to this many tokens in the middle: the tokenizer's prefix (BOS) and the
            end of the prompt, which asks for the answer, are kept.
        engine: null is the fastest built-in path; which one runs is not part of the key, and the report compares it.
            A named engine is part of the key: its rounding differs.
        thought: makes a model think before it answers, up to a budget; null leaves that to the model.
        sampling: samples the tokens; null takes the most probable ones.
    """

    name: ClassVar[str] = "greedy"
    version: ClassVar[int] = 1
    max_prompt: int = 512
    engine: Literal["vllm"] | None = None
    thought: ThoughtBudget | None = None
    sampling: Sampling | None = None

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return counts(self, "max_prompt")

    @property
    def samples(self) -> int:
        """Generations per prompt."""
        return self.sampling.samples if self.sampling else 1
