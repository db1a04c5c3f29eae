"""Interfaces of methods that change the examples they train on: rewrite, compose, choose or weight them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from harness.protocols.learner import Named

if TYPE_CHECKING:
    from random import Random

    from transformers import PreTrainedTokenizerBase

    from harness.corpora.encode import Encoded
    from harness.corpora.examples import Example, Role
    from harness.protocols.learner import Batch, BatchProvider, Learner


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


class Chosen(NamedTuple):
    """What a method makes of the stage's own examples before training.

    Attributes:
        rows: the examples that are trained on, in their order: index among those given, and the example, possibly with
            fewer supervised tokens.
        facts: about the choice, for the manifest; JSON values only.
    """

    rows: list[tuple[int, Encoded]]
    facts: Mapping[str, object]


class GivenRows(Protocol):
    """What a method can look at before training; the same on every process."""

    @property
    def own(self) -> Sequence[Encoded]:
        """The stage's own examples, the mixed-in ones included."""
        ...

    def of(self, role: Role) -> Sequence[Encoded]:
        """Return the examples of a role that the method declared with a batch size."""
        ...

    def partners(self, role: Role) -> Sequence[Encoded]:
        """Return the refusals of the prompts of a role declared as ``paired``."""
        ...

    def batches(self, rows: Sequence[Encoded]) -> Iterator[Batch]:
        """Yield examples in their order, in batches that are the same on every process."""
        ...

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield this process's share of the batches of an epoch of the stage's own examples, in a seeded order."""
        ...


@runtime_checkable
class ChoosesRows(Named, Protocol):
    """Optional: settings of a training method that chooses what to train on: examples, or tokens of them.

    It may train the model to find out; afterwards the trainable parameters are restored.
    """

    def choose(self, learner: Learner, given: GivenRows, batches: BatchProvider) -> Chosen:
        """Return the examples that are trained on; every process returns the same."""
        ...


@runtime_checkable
class WeighsRows(Protocol):
    """Optional: a training step with a weight for each of the stage's own examples, reported by kind of example."""

    def row_weights(self) -> Sequence[float]:
        """Return the weights after the last step."""
        ...
