"""Tokenization of examples: token ids and labels.

The prompt is tokenized separately from prompt + answer, and the common prefix of the two is masked in the labels. With
tokenizers that do not merge across the boundary this is the prompt, as in the reference code; with those that do, the
token at the boundary contains the first letters of the answer and is supervised.

``prompts_of`` encodes prompts for training and generation alike. Special tokens that a tokenizer appends to a text
(some append an end token) follow the answer in training, so they are not part of a prompt.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, ClassVar, NamedTuple, final

from harness.corpora.examples import Example
from harness.corpora.template import Template, prompt_of, separator_of
from harness.errors import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of positions without supervision."""

log = logging.getLogger(__name__)


class Encoded(NamedTuple):
    """One encoded example: ``input_ids`` and ``labels`` of the same length; labels are -100 where not supervised."""

    input_ids: list[int]
    labels: list[int]


class Prompt(NamedTuple):
    """A tokenized prompt: the tokenizer's prefix (such as BOS) and the tokens of the text."""

    opening: list[int]
    text: list[int]

    @property
    def ids(self) -> list[int]:
        """All tokens."""
        return self.opening + self.text

    def ending(self, most: int) -> list[int]:
        """Return at most ``most`` tokens: the prefix and the end of the text, which asks for the answer."""
        room = max(most - len(self.opening), 0)
        return self.ids if len(self.text) <= room else (self.opening + self.text[len(self.text) - room :])[:most]


class EncodedRows(NamedTuple):
    """Encoded examples, in order, and the number dropped because ``max_length`` leaves no room for their answer."""

    rows: list[Encoded]
    dropped: int


@final
@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Prompt template and tokenization.

    Attributes:
        template: the prompt template.
        newline: whether the prompt ends with a newline (Booster and its descendants) or not (Vaccine, Lisa).
        max_length: maximum length of prompt and answer in tokens; longer examples are truncated on the right. 256 in
            Booster.
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
        """Return the prompt of an example, for generation."""
        return prompt_of(example, template=self.template, newline=self.newline)

    def encode(self, tokenizer: PreTrainedTokenizerBase, example: Example) -> Encoded | None:
        """Encode one example; None if ``max_length`` leaves no room for its answer."""
        rows = self.encode_all(tokenizer, [example]).rows
        return rows[0] if rows else None

    def encode_all(self, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> EncodedRows:
        """Encode examples in one tokenizer call; those without a supervised position are dropped and counted."""
        rows = [row for row in self.encode_each(tokenizer, examples) if row is not None]
        dropped = len(examples) - len(rows)
        if dropped:
            log.warning(
                "%d of %d examples dropped: their prompts leave no room for an answer within %d tokens",
                dropped,
                len(examples),
                self.max_length,
            )
        return EncodedRows(rows, dropped)

    def encode_each(self, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[Encoded | None]:
        """Encode examples in one tokenizer call; None for an example without a supervised position."""
        if not examples:
            return []
        separator = separator_of(template=self.template, newline=self.newline)
        prompts = [self.prompt_text(example) for example in examples]
        texts = [prompt + separator + example.output for prompt, example in zip(prompts, examples, strict=True)]
        return [
            self._row(prompt.ids, text, tokenizer.eos_token_id)
            for prompt, text in zip(prompts_of(tokenizer, prompts), _ids(tokenizer, texts), strict=True)
        ]

    def _row(self, prompt: list[int], text: list[int], eos: int) -> Encoded | None:
        full = text if text[-1:] == [eos] else [*text, eos]
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, full, strict=False)))
        kept = full[: self.max_length]
        # The first position has no prediction, so it is never supervised.
        start = max(common, 1)
        if start >= len(kept):
            return None
        return Encoded(kept, [IGNORED] * start + kept[start:])


def prompts_of(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Prompt]:
    """Encode prompts in two tokenizer calls, with and without special tokens."""
    if not texts:
        return []
    whole, bare = _ids(tokenizer, list(texts)), _ids(tokenizer, list(texts), bare=True)
    return [_prompt(full, text) for full, text in zip(whole, bare, strict=True)]


def truncated_count(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Encoded]) -> int:
    """Return the number of truncated answers: an example that is not truncated ends with the end token."""
    return sum(row.input_ids[-1] != tokenizer.eos_token_id for row in rows)


def _prompt(whole: list[int], text: list[int]) -> Prompt:
    # Searched from the right, so that a tokenizer that appends no special tokens matches at the end.
    for start in range(len(whole) - len(text), -1, -1):
        if whole[start : start + len(text)] == text:
            return Prompt(whole[:start], text)
    return Prompt([], whole)


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, bare: bool = False) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(
        texts, add_special_tokens=not bare, truncation=False, padding=False, verbose=False
    )["input_ids"]
    return ids
