"""Prompts as token ids, generations as text, and how they were decoded; common to all decoding paths."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from harness.corpora.chat import token_ids
from harness.corpora.encode import Question, ends_of, prompts_of
from harness.corpora.thoughts import Thoughts
from harness.generation.decoding import Decoding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


class Path(StrEnum):
    """Decoding paths."""

    PLAIN = "plain"
    SLOTS = "slots"
    VLLM = "vllm"


class Answers(NamedTuple):
    """Generations in the order of their prompts, and how they were decoded.

    Attributes:
        texts: the generations.
        facts: for the manifest: ``path``, why it is not the fastest (``why``), the dtypes (``arithmetic``), and
            details of the path, such as ``batch``, its batch size.
        cut: number of truncated prompts.
    """

    texts: list[str]
    facts: dict[str, Any]
    cut: int = 0


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Encoded prompts without duplicates.

    Attributes:
        prompts: token ids of the distinct prompts, longest first.
        new_tokens: maximum number of new tokens.
        ends: end-of-sequence token ids.
        pad: padding token id.
        cut: number of truncated prompts, duplicates included.
    """

    prompts: list[list[int]]
    new_tokens: int
    ends: list[int]
    pad: int
    cut: int
    _tokenizer: PreTrainedTokenizerBase
    _texts: Sequence[Question]
    _sorted: list[Question]
    _stripped: frozenset[int] | None

    @classmethod
    def of(
        cls,
        texts: Sequence[Question],
        tokenizer: PreTrainedTokenizerBase,
        *,
        own_ends: int | Sequence[int] | None,
        new_tokens: int,
        decoding: Decoding,
        thoughts: Thoughts | None = None,
    ) -> Self:
        """Encode prompts as in training and truncate them as described at ``Decoding.max_prompt``.

        Args:
            texts: the prompts, as text or as messages.
            tokenizer: the model's tokenizer.
            own_ends: end-of-sequence token ids of the model's generation config.
            new_tokens: maximum number of new tokens.
            decoding: decoding settings.
            thoughts: the markers of thought and answer, whose tokens are kept in the generations even where they are
                special tokens; None if there are none.
        """
        distinct = list(dict.fromkeys(texts))
        encoded = prompts_of(tokenizer, distinct)
        lengths = [len(prompt.ids) for prompt in encoded]
        long = {text for text, length in zip(distinct, lengths, strict=True) if length > decoding.max_prompt}
        if long:
            log.warning(
                "%d of %d prompts are longer than %d tokens and lost their beginning",
                len(long),
                len(distinct),
                decoding.max_prompt,
            )
        order = sorted(range(len(encoded)), key=lambda i: (-lengths[i], i))
        known = own_ends if isinstance(own_ends, Sequence) else [own_ends]
        return cls(
            prompts=[encoded[i].ending(decoding.max_prompt) for i in order],
            new_tokens=new_tokens,
            ends=sorted(ends_of(tokenizer, distinct).union(token for token in known if token is not None)),
            pad=tokenizer.pad_token_id,
            cut=sum(text in long for text in texts),
            _tokenizer=tokenizer,
            _texts=texts,
            _sorted=[distinct[i] for i in order],
            _stripped=None if thoughts is None else _special(tokenizer) - _tokens(tokenizer, thoughts),
        )

    def answered(self, written: Sequence[Sequence[int]], facts: dict[str, Any]) -> Answers:
        """Decode new tokens to text and return the generations in the original order of the prompts.

        Special tokens are stripped, whitespace and the markers of thoughts are not.

        Args:
            written: new tokens by index in ``prompts``; tokens after an end token are ignored.
            facts: how they were decoded.
        """
        texts = {text: self._text(row) for text, row in zip(self._sorted, written, strict=True)}
        return Answers([texts[text] for text in self._texts], facts, self.cut)

    def _text(self, row: Sequence[int]) -> str:
        length = next((place for place, token in enumerate(row) if token in self.ends), len(row))
        if self._stripped is None:
            return str(self._tokenizer.decode(list(row[:length]), skip_special_tokens=True))
        kept = [token for token in row[:length] if token not in self._stripped]
        return str(self._tokenizer.decode(kept, skip_special_tokens=False))


def _special(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    added = (token for token, text in tokenizer.added_tokens_decoder.items() if text.special)
    return frozenset([*tokenizer.all_special_ids, *added])


def _tokens(tokenizer: PreTrainedTokenizerBase, thoughts: Thoughts) -> frozenset[int]:
    markers = token_ids(tokenizer, [thoughts.think, thoughts.answer])
    return frozenset(token for marker in markers for token in marker) - {tokenizer.unk_token_id}
