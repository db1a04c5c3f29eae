"""What judges with a written verdict share: weights, prompts in batches, greedy decoding, abstentions.

A verdict that does not have the published form is an abstention with the text that was written; it is counted and never
replaced by a default. So is a conversation that exceeds the model's context.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from harness.corpora.examples import Example, Score
from harness.engine.checks import counts
from harness.errors import Problem
from harness.models.checkpoint import CAUSAL_FILES, Checkpoint
from harness.models.saved import Precision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOO_LONG = Score(None, "the conversation is longer than the judge's context")
_SHOWN = 60


@dataclass(frozen=True, kw_only=True)
class PromptedClassifier(ABC):
    """A judge that continues a prompt with its verdict.

    Attributes:
        repo: the model's repository on the Hub.
        revision: a commit of that repository, 40 hexadecimal digits. Required, because a branch can change.
        dtype: the dtype of the weights.
        max_answer: answers are truncated to this many tokens of the judge; HarmBench publishes 512.
    """

    new_tokens: ClassVar[int]
    """Maximum length of the verdict, in tokens."""

    repo: str
    revision: str | None = None
    dtype: Precision = Precision.BFLOAT16
    max_answer: int = 512

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return [*self._weights().problems(), *counts(self, "max_answer")]

    def preflight(self) -> list[Problem]:
        """Return an error if the revision is missing, or if the weights are not cached and the Hub is set offline."""
        return self._weights().preflight()

    def fetch(self) -> Path:
        """Return the folder of the model's files, downloading those that are not in the Hub's cache.

        Raises:
            ModelError: the files are not available.
        """
        return self._weights().folder()

    def grade(self, examples: Sequence[Example], answers: Sequence[str], *, device: str) -> list[Score]:
        """Score each answer given its instruction: 1 harmful, 0 harmless, None without a verdict.

        Raises:
            ModelError: the model is not available or does not fit into memory.
        """
        folder = self.fetch()
        from harness.generation.prompted import open_prompted, shortened, written

        opened = open_prompted(folder, dtype=self.dtype.value, device=device)
        prompts = [
            self.prompt(opened.tokenizer, example.instruction, shortened(opened.tokenizer, answer, self.max_answer))
            for example, answer in zip(examples, answers, strict=True)
        ]
        texts = written(opened, prompts, new_tokens=self.new_tokens)
        return [TOO_LONG if text is None else self.verdict(text) for text in texts]

    @abstractmethod
    def prompt(self, tokenizer: PreTrainedTokenizerBase, question: str, answer: str) -> str:
        """Return the judge's prompt, without the beginning-of-sequence token."""

    @abstractmethod
    def verdict(self, text: str) -> Score:
        """Return the score of a written verdict; an abstention if it does not have the published form."""

    def _weights(self) -> Checkpoint:
        return Checkpoint(self.repo, self.revision, files=CAUSAL_FILES)


def abstention(text: str) -> Score:
    """Return the score of a text that is not a verdict."""
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return Score(None, f"no verdict: {shown!r}")
