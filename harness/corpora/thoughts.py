"""Thoughts before an answer: the markers that a reasoning model writes around them."""

from dataclasses import dataclass
from typing import ClassVar, final

from harness.errors import Problem


@final
@dataclass(frozen=True, kw_only=True)
class Thoughts:
    r"""The markers of thought and answer; the defaults are those of s1 and Safety-Tax (arXiv 2503.00555).

    A thought with its answer is ``think``, a newline, the thought as it is, ``answer``, a newline and the answer. A
    newline at the end of a thought is the row's own: Safety-Tax's SafeChain rows have one, its DirectRefusal rows have
    none.

    Attributes:
        think: the marker before a thought.
        answer: the marker before an answer.
        final: what follows the answer marker where a thought is ended because its budget is used up.
    """

    name: ClassVar[str] = "thoughts"
    version: ClassVar[int] = 1

    think: str = "<|im_start|>think"
    answer: str = "<|im_start|>answer"
    final: str = "Final Answer:"

    def problems(self) -> list[Problem]:
        """Return the errors of the settings."""
        found = [
            Problem(marker, "the marker is empty; expected a text that no thought contains")
            for marker in ("think", "answer")
            if not getattr(self, marker).strip()
        ]
        if not found and (self.answer in self.think or self.think in self.answer):
            text = (
                f"`{self.answer}` and `{self.think}` contain one another; expected two markers that can be told apart"
            )
            found.append(Problem("answer", text))
        return found

    @property
    def opening(self) -> str:
        """The text between a prompt and a thought."""
        return f"{self.think}\n"

    @property
    def closing(self) -> str:
        """The text between a thought and its answer."""
        return f"{self.answer}\n"

    def written(self, thought: str, answer: str) -> str:
        """Return a thought and its answer as a model writes them."""
        return self.opening + thought + self.closing + answer
