"""From examples to token ids and labels.

The prompt is tokenized separately from prompt + answer, and the common prefix of the two is masked. With tokenizers
that do not merge across the boundary this is the prompt, as in the reference code; with those that do, the token that
straddles the boundary carries the first letters of the answer and is supervised.

A model answers what it was trained on: ``prompts_of`` encodes prompts for both. What a tokenizer puts behind a text (an
end token, in some) stands behind the answer in training, so it is no part of a prompt.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, ClassVar, NamedTuple, final

from harness.corpora.examples import Example
from harness.corpora.template import Template, joint_of, prompt_of
from harness.errors import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a position that is not supervised."""

log = logging.getLogger(__name__)


class Encoded(NamedTuple):
    """One row: ``input_ids`` and ``labels`` of the same length; a label is -100 where nothing is supervised."""

    input_ids: list[int]
    labels: list[int]


class Prompt(NamedTuple):
    """A prompt as a model reads it: what the tokenizer puts before every text, and the text's own tokens."""

    opening: list[int]
    text: list[int]

    @property
    def ids(self) -> list[int]:
        """All tokens."""
        return self.opening + self.text

    def ending(self, most: int) -> list[int]:
        """Return at most so many tokens: the opening, and the end of the text, which asks for the answer."""
        room = max(most - len(self.opening), 0)
        return self.ids if len(self.text) <= room else (self.opening + self.text[len(self.text) - room :])[:most]


class EncodedRows(NamedTuple):
    """Encoded rows in the order of their examples, and how many were dropped because no part of the answer fits."""

    rows: list[Encoded]
    dropped: int


@final
@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How text becomes tokens.

    Attributes:
        template: the layout of a prompt.
        newline: whether the prompt ends with a newline (Booster's family) or not (Vaccine, Lisa).
        max_length: longest row in tokens; what exceeds it is cut off on the right. 256 in Booster.
    """

    name: ClassVar[str] = "encoding"
    version: ClassVar[int] = 1

    template: Template = Template.ALPACA
    newline: bool = True
    max_length: int = 256

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        if self.max_length < 2:
            return [
                Problem("max_length", f"{self.max_length} leaves no room for an answer; expected at least 2 tokens")
            ]
        return []

    def prompt_text(self, example: Example) -> str:
        """Return what a model is given when it shall answer."""
        return prompt_of(example, template=self.template, newline=self.newline)

    def encode(self, tokenizer: PreTrainedTokenizerBase, example: Example) -> Encoded | None:
        """Encode one example; None if no position of its answer fits into ``max_length``."""
        rows = self.encode_all(tokenizer, [example]).rows
        return rows[0] if rows else None

    def encode_all(self, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> EncodedRows:
        """Encode examples in one call of the tokenizer; rows without a supervised position are dropped and counted."""
        rows = [row for row in self.encode_each(tokenizer, examples) if row is not None]
        dropped = len(examples) - len(rows)
        if dropped:
            log.warning("%d of %d rows dropped: no answer within %d tokens", dropped, len(examples), self.max_length)
        return EncodedRows(rows, dropped)

    def encode_each(self, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[Encoded | None]:
        """Encode examples in one call of the tokenizer; None stands for a row without a supervised position."""
        if not examples:
            return []
        joint = joint_of(template=self.template, newline=self.newline)
        prompts = [self.prompt_text(example) for example in examples]
        texts = [prompt + joint + example.output for prompt, example in zip(prompts, examples, strict=True)]
        return [
            self._row(prompt.ids, text, tokenizer.eos_token_id)
            for prompt, text in zip(prompts_of(tokenizer, prompts), _ids(tokenizer, texts), strict=True)
        ]

    def _row(self, prompt: list[int], text: list[int], eos: int) -> Encoded | None:
        full = text if text[-1:] == [eos] else [*text, eos]
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, full, strict=False)))
        kept = full[: self.max_length]
        # The first position has nothing to be predicted from, so it never counts as supervised.
        start = max(common, 1)
        if start >= len(kept):
            return None
        return Encoded(kept, [IGNORED] * start + kept[start:])


def prompts_of(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Prompt]:
    """Encode prompts in two calls of the tokenizer: with what it puts around a text, and without."""
    if not texts:
        return []
    whole, bare = _ids(tokenizer, list(texts)), _ids(tokenizer, list(texts), bare=True)
    return [_prompt(around, text) for around, text in zip(whole, bare, strict=True)]


def cut_in(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Encoded]) -> int:
    """Return how many answers lost their end: a row that is whole ends with the end token."""
    return sum(row.input_ids[-1] != tokenizer.eos_token_id for row in rows)


def _prompt(whole: list[int], text: list[int]) -> Prompt:
    # From the right, so that a tokenizer that puts nothing behind a text is taken at its word.
    for start in range(len(whole) - len(text), -1, -1):
        if whole[start : start + len(text)] == text:
            return Prompt(whole[:start], text)
    return Prompt([], whole)


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, bare: bool = False) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(
        texts, add_special_tokens=not bare, truncation=False, padding=False, verbose=False
    )["input_ids"]
    return ids
