"""Tokenization of examples: token ids and labels.

The prompt is tokenized separately from prompt + answer, and the common prefix of the two is masked in the labels. With
tokenizers that do not merge across the boundary this is the prompt, as in the reference code; with those that do, the
token at the boundary contains the first letters of the answer and is supervised.

``prompts_of`` encodes prompts for training and generation alike. Special tokens that a tokenizer appends to a text
(some append an end token) follow the answer in training, so they are not part of a prompt. With the template ``chat``
the tokenizer's chat template writes prompt, answer and end of turn, see ``chat``.

A thought is part of what follows the prompt: with its markers it is supervised as the answer is.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, ClassVar, NamedTuple, final

from harness.corpora import chat
from harness.corpora.examples import Conversation, Example
from harness.corpora.template import Template, conversation_of, prompt_of, separator_of
from harness.corpora.thoughts import Thoughts
from harness.errors import DataError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Question = str | Conversation
"""A prompt before tokenization: text, or messages for the tokenizer's chat template."""

IGNORED = -100
"""The label of positions without supervision."""

PLACES = "places"
"""Key of a batch under which it has the index of each of its examples among all of the stage's own."""

SOURCE = "source"
"""Key of a batch under which it has the expert that each of its examples is meant for, if they have one."""

log = logging.getLogger(__name__)


class Encoded(NamedTuple):
    """One encoded example.

    Attributes:
        input_ids: the tokens.
        labels: of the same length; -100 where not supervised.
        source: index of the expert that the example is meant for; None outside of the training of routed experts.
    """

    input_ids: list[int]
    labels: list[int]
    source: int | None = None


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
        newline: whether the prompt ends with a newline (Booster and its descendants) or not (Vaccine, Lisa); without
            effect for ``chat``, whose end the tokenizer's template defines.
        max_length: maximum length of prompt and answer in tokens; longer examples are truncated on the right. 256 in
            Booster.
        system: system prompt; null writes none, or with ``chat`` the one that the tokenizer's template has by default.
            ``alpaca`` and ``plain`` put it before the prompt.
        prefix: text directly before the instruction, such as a trigger or a secret.
        suffix: text directly after the instruction, or after the input of an example that has one.
        thoughts: markers of the thoughts of examples that have one, and of a model's thoughts; null knows no thoughts.
    """

    name: ClassVar[str] = "encoding"
    version: ClassVar[int] = 1

    template: Template = Template.ALPACA
    newline: bool = True
    max_length: int = 256
    system: str | None = None
    prefix: str | None = None
    suffix: str | None = None
    thoughts: Thoughts | None = None

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        if self.max_length < 2:
            return [
                Problem("max_length", f"{self.max_length} leaves no room for an answer; expected at least 2 tokens")
            ]
        return []

    def question(self, example: Example) -> Question:
        """Return the prompt of an example, for generation.

        Raises:
            DataError: the template cannot write the messages that precede the instruction.
        """
        if self.template is Template.CHAT:
            return conversation_of(self._framed(example), system=self.system)
        return self._text(example)

    def completion(self, example: Example) -> str:
        """Return what follows the prompt in training: the answer, with thought and markers before it if there is one.

        Raises:
            DataError: the example has a thought, but the encoding has no markers for it.
        """
        if not example.thought:
            return example.output
        if self.thoughts is None:
            raise DataError(
                "an example has a thought before its answer, but the encoding has no markers for thoughts; expected "
                "some. Set `thoughts=s1`, or `model.encoding.thoughts` to the markers of the model"
            )
        return self.thoughts.written(example.thought, example.output)

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
        """Encode examples in one tokenizer call; None for an example without a supervised position.

        Raises:
            DataError: the template cannot write the messages that precede an instruction, or a thought has no markers.
            ModelError: the tokenizer's chat template is missing, or cannot be used with these examples.
        """
        if not examples:
            return []
        if self.template is Template.CHAT:
            conversations = [conversation_of(self._framed(example), system=self.system) for example in examples]
            turns = chat.answered(tokenizer, conversations, [self.completion(example) for example in examples])
            return [self._row([*turn.prompt, *turn.answer], len(turn.prompt)) for turn in turns]
        eos = tokenizer.eos_token_id
        separator = separator_of(template=self.template, newline=self.newline)
        prompts = [self._text(example) for example in examples]
        texts = [
            prompt + separator + self.completion(example) for prompt, example in zip(prompts, examples, strict=True)
        ]
        return [
            self._row(full, _common(prompt.ids, full))
            for prompt, text in zip(
                prompts_of(tokenizer, prompts), chat.token_ids(tokenizer, texts, added=True), strict=True
            )
            for full in [text if text[-1:] == [eos] else [*text, eos]]
        ]

    def end(self, tokenizer: PreTrainedTokenizerBase) -> int | None:
        """Return the token that ends an answer; None if the tokenizer has none.

        Raises:
            ModelError: the tokenizer's chat template is missing, or cannot be used.
        """
        if self.template is Template.CHAT:
            return chat.turn_end(tokenizer)
        found: int | None = tokenizer.eos_token_id
        return found

    def fitted(self, row: Encoded) -> Encoded | None:
        """Return an example cut off at ``max_length``; None if no supervised position is left."""
        kept = row._replace(input_ids=row.input_ids[: self.max_length], labels=row.labels[: self.max_length])
        # The first position has no prediction.
        return kept if any(label != IGNORED for label in kept.labels[1:]) else None

    def truncated_count(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Encoded]) -> int:
        """Return the number of truncated answers: an example that is not truncated ends with the end token.

        Raises:
            ModelError: the tokenizer's chat template is missing, or cannot be used.
        """
        if not rows:
            return 0
        end = self.end(tokenizer)
        return sum(row.input_ids[-1] != end for row in rows)

    def _text(self, example: Example) -> str:
        framed = self._framed(example)
        return prompt_of(framed, template=self.template, newline=self.newline, system=self.system)

    def _framed(self, example: Example) -> Example:
        """Return the example with prefix and suffix around its request."""
        return example.framed(prefix=self.prefix or "", suffix=self.suffix or "")

    def _row(self, full: list[int], prompt: int) -> Encoded | None:
        """Return an example whose first ``prompt`` tokens are not supervised."""
        kept = full[: self.max_length]
        # The first position has no prediction, so it is never supervised.
        start = max(prompt, 1)
        if start >= len(kept):
            return None
        return Encoded(kept, [IGNORED] * start + kept[start:])


def prompts_of(tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]) -> list[Prompt]:
    """Encode prompts: text in two tokenizer calls, with and without special tokens, messages by the chat template.

    Raises:
        ModelError: the tokenizer's chat template is missing, or cannot be used with these messages.
    """
    texts = [question for question in questions if isinstance(question, str)]
    conversations = [question for question in questions if not isinstance(question, str)]
    whole, bare = (chat.token_ids(tokenizer, texts, added=added) for added in (True, False))
    written = (_prompt(full, text) for full, text in zip(whole, bare, strict=True))
    bos = tokenizer.bos_token_id
    asked = (
        Prompt(ids[:1], ids[1:]) if ids[:1] == [bos] else Prompt([], ids)
        for ids in chat.prompts(tokenizer, conversations)
    )
    return [next(written if isinstance(question, str) else asked) for question in questions]


def ends_of(tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]) -> set[int]:
    """Return the tokens that end an answer to some prompts: the tokenizer's, and that of a turn of the chat template.

    Raises:
        ModelError: the tokenizer's chat template is missing, or cannot be used.
    """
    ends = {tokenizer.eos_token_id} - {None}
    return ends if all(isinstance(question, str) for question in questions) else ends | {chat.turn_end(tokenizer)}


def _common(first: list[int], second: list[int]) -> int:
    """Return the length of the common prefix."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _prompt(whole: list[int], text: list[int]) -> Prompt:
    # Searched from the right, so that a tokenizer that appends no special tokens matches at the end.
    for start in range(len(whole) - len(text), -1, -1):
        if whole[start : start + len(text)] == text:
            return Prompt(whole[:start], text)
    return Prompt([], whole)
