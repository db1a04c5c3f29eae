"""Interfaces of methods that change the examples they train on: as text or as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from random import Random

    from transformers import PreTrainedTokenizerBase

    from harness.corpora.encode import Encoded
    from harness.corpora.examples import Example


class AnswerPair(NamedTuple):
    """A prompt with two answers, as token ids.

    Attributes:
        prompt: the prompt, up to where an answer begins.
        harmful: the harmful answer, without the token that ends it.
        refusal: the refusal, with the token that ends it.
    """

    prompt: list[int]
    harmful: list[int]
    refusal: list[int]


@runtime_checkable
class RewritesExamples(Protocol):
    """Optional: settings of a training method that rewrites the stage's own examples before they are encoded."""

    def rewrite(self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[Example]:
        """Return the examples as they are trained on, as many and in the same order."""
        ...


@runtime_checkable
class RewritesMixedIn(Protocol):
    """Optional: settings of a training method that rewrites the examples which it mixes into the stage's own."""

    def rewrite_mixed_in(self, examples: Sequence[Example], own: Sequence[Example]) -> list[Example]:
        """Return the examples as they are mixed in, as many and in the same order.

        Args:
            examples: the method's examples, as the corpus has them.
            own: the stage's own examples, whose format can be imitated.
        """
        ...


@runtime_checkable
class ComposesRows(Protocol):
    """Optional: settings of a training method that makes what it mixes in from two answers to each prompt.

    The method's requirement of harmful examples is ``paired`` and has no batch size.
    """

    def compose(self, pairs: Sequence[AnswerPair], rng: Random) -> list[Encoded]:
        """Return encoded examples; the stage cuts them off at the encoding's ``max_length``."""
        ...
