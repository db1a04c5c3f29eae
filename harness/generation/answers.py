"""What is asked of a model and what comes back: prompts as tokens, new tokens as text, and how it was done."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from harness.corpora.encode import prompts_of
from harness.generation.decoding import Decoding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


class Path(StrEnum):
    """How answers were decoded."""

    PLAIN = "plain"
    SLOTS = "slots"
    VLLM = "vllm"


class Answers(NamedTuple):
    """Answers in the order of their prompts, and how they were decoded.

    Attributes:
        texts: the answers.
        facts: for a manifest: ``path``, why not the fastest (``why``), number formats (``arithmetic``), and what else
            belongs to the path, such as rows at once (``batch``).
        cut: how many prompts lost their beginning.
    """

    texts: list[str]
    facts: dict[str, Any]
    cut: int = 0


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Prompts to be answered; one that occurs several times is answered once.

    Attributes:
        prompts: the distinct prompts as tokens, longest first.
        new_tokens: longest answer, in tokens.
        ends: tokens that end an answer.
        pad: the token that pads.
        cut: how many prompts lost their beginning.
    """

    prompts: list[list[int]]
    new_tokens: int
    ends: list[int]
    pad: int
    cut: int
    _tokenizer: PreTrainedTokenizerBase
    _texts: Sequence[str]
    _sorted: list[str]

    @classmethod
    def of(
        cls,
        texts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        own_ends: int | Sequence[int] | None,
        new_tokens: int,
        decoding: Decoding,
    ) -> Self:
        """Encode prompts as in training; one that is too long keeps what the tokenizer puts before a text, and its end.

        Args:
            texts: the prompts.
            tokenizer: of the model.
            own_ends: the tokens that end an answer by the model's own settings.
            new_tokens: longest answer, in tokens.
            decoding: the settings.
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
            ends=sorted({token for token in (*known, tokenizer.eos_token_id) if token is not None}),
            pad=tokenizer.pad_token_id,
            cut=sum(text in long for text in texts),
            _tokenizer=tokenizer,
            _texts=texts,
            _sorted=[distinct[i] for i in order],
        )

    def answered(self, written: Sequence[Sequence[int]], facts: dict[str, Any]) -> Answers:
        """Return the answers in the order in which the prompts came.

        Special tokens are stripped, whitespace is not.

        Args:
            written: the new tokens of each of ``prompts``; what follows an end token is ignored.
            facts: how they were decoded.
        """
        texts = {text: self._text(row) for text, row in zip(self._sorted, written, strict=True)}
        return Answers([texts[text] for text in self._texts], facts, self.cut)

    def _text(self, row: Sequence[int]) -> str:
        length = next((place for place, token in enumerate(row) if token in self.ends), len(row))
        return str(self._tokenizer.decode(list(row[:length]), skip_special_tokens=True))
