"""The markers of thought and answer as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from harness.corpora.chat import token_ids
from harness.corpora.thoughts import Thoughts
from harness.errors import ModelError
from harness.generation.decoding import ThoughtBudget
from harness.generation.token_choice import ForcedAnswer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Markers:
    """The tokens of markers.

    Attributes:
        opening: think marker and newline.
        closing: answer marker and newline.
        cut: the same and what follows where a thought is ended.
        stripped: special tokens that are no part of a marker; they are not part of a generation's text.
        known: whether the tokenizer knows every token of the markers.
        own: whether an answer marker begins with a token that stands for nothing else: it is one token, or begins with
            an added one.
        text: the answer marker.
    """

    opening: list[int]
    closing: list[int]
    cut: list[int]
    stripped: frozenset[int]
    known: bool
    own: bool
    text: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, thoughts: Thoughts) -> Self:
        """Tokenize the markers."""
        texts = [thoughts.opening, thoughts.closing, thoughts.closing + thoughts.final]
        opening, closing, cut = token_ids(tokenizer, texts)
        (marker,) = token_ids(tokenizer, [thoughts.answer])
        special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        special.update(tokenizer.all_special_ids)
        parts = {*opening, *closing} - {tokenizer.unk_token_id}
        return cls(
            opening=opening,
            closing=closing,
            cut=cut,
            stripped=frozenset(special - parts),
            known=tokenizer.unk_token_id not in (*opening, *closing),
            own=len(marker) == 1 or marker[0] in tokenizer.added_tokens_decoder,
            text=thoughts.answer,
        )

    def forced(self, budget: ThoughtBudget, ends: Sequence[int]) -> ForcedAnswer | None:
        """Return what ends a thought; None if it is not limited.

        Args:
            budget: of the thoughts.
            ends: end-of-sequence token ids.

        Raises:
            ModelError: the tokenizer has no tokens for the markers at which a thought could be ended.
        """
        if not self.known:
            raise ModelError(
                f"the tokenizer does not know all tokens of the markers of thought and answer (`{self.text}`); "
                "expected markers of this model. Set `model.encoding.thoughts`"
            )
        if budget.tokens is None:
            return None
        if not self.own or set(ends).intersection(self.cut):
            raise ModelError(
                f"the tokenizer writes the answer marker `{self.text}` with tokens that stand for other text as well, "
                "or that end generations, so it cannot end a thought; expected a marker that is a token or begins with "
                "an added one. Set `model.encoding.thoughts`, or `evaluation.decoding.thought=null`"
            )
        return ForcedAnswer(
            budget=budget.tokens,
            stops=tuple(sorted({self.closing[0], *ends})),
            closing=tuple(self.closing),
            cut=tuple(self.cut),
        )
