"""Examples that a method mixes into a stage's own, changed by it: rewritten as text, or made from two answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from harness.corpora.encode import IGNORED, Encoded, EncodedRows, Encoding
from harness.corpora.examples import Example
from harness.corpora.slices import Slice
from harness.engine.seeding import generator
from harness.protocols import AnswerPair, ComposesRows, RewritesMixedIn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Changes(NamedTuple):
    """What a method does to the examples that it mixes in.

    Attributes:
        method: the method; None does nothing.
        own: the stage's own examples, before any rewriting.
        seed: of the random choices.
    """

    method: object = None
    own: Sequence[Example] = ()
    seed: int = 0

    def encoded(
        self, tokenizer: PreTrainedTokenizerBase, encoding: Encoding, origin: Slice, *, paired: bool
    ) -> EncodedRows:
        """Return the encoded examples of a requirement, and how many were dropped.

        Args:
            tokenizer: the model's tokenizer.
            encoding: prompt template and tokenization.
            origin: the examples.
            paired: whether the method makes its own from their harmful answers and refusals.

        Raises:
            DataError: the examples cannot be read.
        """
        if paired and isinstance(self.method, ComposesRows):
            pairs, incomplete = answer_pairs(tokenizer, encoding, origin)
            composed = self.method.compose(pairs, generator(self.seed, "compose"))
            fitted = [row for row in map(encoding.fitted, composed) if row is not None]
            return EncodedRows(fitted, len(composed) - len(fitted) + incomplete)
        examples = origin.examples()
        if isinstance(self.method, RewritesMixedIn):
            examples = self.method.rewrite_mixed_in(examples, self.own)
        return encoding.encode_all(tokenizer, examples)


class Pairs(NamedTuple):
    """Pairs of answers, and the number of prompts that leave no room for one of theirs."""

    pairs: list[AnswerPair]
    dropped: int


def answer_pairs(tokenizer: PreTrainedTokenizerBase, encoding: Encoding, origin: Slice) -> Pairs:
    """Return the prompts of a slice, each with its harmful answer and its refusal.

    Raises:
        DataError: the examples cannot be read, or one has no refusal.
    """
    end = encoding.end(tokenizer)
    both = list(
        zip(
            encoding.encode_each(tokenizer, origin.examples()),
            encoding.encode_each(tokenizer, origin.refusals()),
            strict=True,
        )
    )
    pairs = []
    for harmful, refusal in both:
        if harmful is None or refusal is None:
            continue
        prompt, answer = _split(harmful)
        pairs.append(AnswerPair(prompt, answer[:-1] if answer[-1:] == [end] else answer, _split(refusal)[1]))
    return Pairs(pairs, len(both) - len(pairs))


def _split(row: Encoded) -> tuple[list[int], list[int]]:
    """Return the tokens of prompt and answer."""
    start = next(place for place, label in enumerate(row.labels) if label != IGNORED)
    return row.input_ids[:start], row.input_ids[start:]
