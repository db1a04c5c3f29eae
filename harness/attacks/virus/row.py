"""A mixed row: a benign example (the host) with a harmful example behind its answer, as text and as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from sys import maxsize
from typing import TYPE_CHECKING, NamedTuple

from harness.corpora.encode import Encoded, Encoding
from harness.corpora.examples import Example
from harness.corpora.template import separator_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class MixedRow:
    """A mixed row as text.

    Attributes:
        host: the benign example.
        head: the host's answer and what separates it from the suffix.
        suffix: the harmful example: prompt, in the words of the template, and answer.
        tail: what follows the suffix; empty if nothing does.
    """

    host: Example
    head: str
    suffix: str
    tail: str

    @property
    def example(self) -> Example:
        """The row as it is uploaded."""
        return self.answered(self.head + self.suffix + self.tail)

    def answered(self, output: str) -> Example:
        """Return the host with another answer."""
        return self.host._replace(output=output)


def mixed(host: Example, harmful: Example, encoding: Encoding, *, joint: str, tail: bool) -> MixedRow:
    """Put a harmful example behind the answer of a benign one.

    Args:
        host: the benign example.
        harmful: the harmful example.
        encoding: the template of the fine-tuning.
        joint: text between answer and harmful example, and before the tail.
        tail: whether the host follows once more.
    """
    return MixedRow(
        host=host,
        head=host.output + joint,
        suffix=_rendered(harmful, encoding),
        tail=joint + _rendered(host, encoding) if tail else "",
    )


def _rendered(example: Example, encoding: Encoding) -> str:
    """Return prompt and answer as the fine-tuning reads them; a chat template is special tokens, so without it."""
    question, completion = encoding.question(example), encoding.completion(example)
    if not isinstance(question, str):
        return "\n\n".join([*(message.content for message in question if message.role == "user"), completion])
    return question + separator_of(template=encoding.template, newline=encoding.newline) + completion


class TokenRow(NamedTuple):
    """A mixed row as tokens: ``before + suffix + after``, of which the first ``prompt`` are not supervised."""

    before: list[int]
    suffix: list[int]
    after: list[int]
    prompt: int

    @property
    def ids(self) -> list[int]:
        """All tokens."""
        return self.of(self.suffix)

    def of(self, suffix: Sequence[int]) -> list[int]:
        """Return all tokens with another suffix."""
        return [*self.before, *suffix, *self.after]


class RowTokenizer:
    """Tokenizes mixed rows as the fine-tuning does, but in full: rows are crafted without regard to ``max_length``.

    Args:
        tokenizer: that of the victim.
        encoding: that of the fine-tuning.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, encoding: Encoding) -> None:
        """Keep the tokenizer; its own limit of length has to be at least as large as the rows."""
        self._tokenizer = tokenizer
        self._encoding = replace(encoding, max_length=maxsize)

    def tokens(self, row: MixedRow) -> TokenRow:
        """Return the row's tokens; a token that also belongs to what surrounds the suffix is not part of it."""
        full, head, bare = self._encoded([row.example, row.answered(row.head), row.answered(row.head + row.suffix)])
        ids = full.input_ids
        start = _common(ids, head.input_ids)
        ending = _common(ids[start:][::-1], head.input_ids[::-1])
        end = _common(ids, bare.input_ids) if row.tail else len(ids) - ending
        return TokenRow(ids[:start], ids[start:end], ids[end:], sum(label < 0 for label in full.labels))

    def texts(self, tokens: TokenRow, suffixes: Sequence[Sequence[int]]) -> list[str]:
        """Return suffixes as text."""
        # In front of a suffix stands the token before it: some tokenizers decode the first token without its space.
        last = tokens.before[-1:]
        opening = self._decoded(last)
        return [self._decoded([*last, *suffix]).removeprefix(opening) for suffix in suffixes]

    def survivors(self, row: MixedRow, tokens: TokenRow, suffixes: Sequence[Sequence[int]]) -> list[str | None]:
        """Return each suffix as text, or None if the text of its row does not have the row's tokens again."""
        texts = self.texts(tokens, suffixes)
        again = self._encoding.encode_each(
            self._tokenizer, [row.answered(row.head + text + row.tail) for text in texts]
        )
        return [
            text if found is not None and found.input_ids == tokens.of(suffix) else None
            for text, found, suffix in zip(texts, again, suffixes, strict=True)
        ]

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _encoded(self, examples: Sequence[Example]) -> list[Encoded]:
        rows = self._encoding.encode_each(self._tokenizer, examples)
        assert all(rows), "without a limit of length there is room for every answer"
        return [row for row in rows if row is not None]


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the common beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
