"""Conversations written by the chat template of a tokenizer, as token ids.

A chat template writes every special token itself. Its text is therefore tokenized without the tokens that the tokenizer
adds to other texts, which would put a second BOS before the first. What is supervised is found from the template: the
prompt is the conversation with the opening of the answer's turn (``add_generation_prompt``), the answer is what the
template writes after it, up to and including the token that ends the turn. What a template writes after that token (a
newline, in ChatML and Gemma) is not generated, so it is not trained on.

The date that some templates write is fixed: a prompt must not depend on the day of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from harness.corpora.examples import Conversation, Message
from harness.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATE = "26 Jul 2024"
"""The date in system prompts; the one that the template of Llama 3.1 writes by default."""
_PROBE = "xyzzy"
_SHOWN = 60
_CHOOSE = "Choose another template (`model.encoding.template`), or a `model` whose tokenizer has one that fits"


class Turn(NamedTuple):
    """A prompt and the turn that answers it, as token ids; the turn ends with the template's end token."""

    prompt: list[int]
    answer: list[int]


def prompts(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]) -> list[list[int]]:
    """Return the token ids of prompts, each with the opening of the turn that answers it.

    Raises:
        ModelError: the tokenizer has no usable chat template, or the template does not accept these messages.
    """
    return token_ids(tokenizer, _texts(tokenizer, conversations, asking=True))


def answered(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], answers: Sequence[str]
) -> list[Turn]:
    """Return prompts and their answers.

    Args:
        tokenizer: the model's tokenizer.
        conversations: the prompts.
        answers: one for each prompt.

    Raises:
        ModelError: as ``prompts``, or the template does not write an answer as the continuation of its prompt.
    """
    asked = _texts(tokenizer, conversations, asking=True)
    texts = [
        prompt + _after(tokenizer, prompt, whole, conversation, answer)
        for prompt, whole, conversation, answer in zip(
            asked, _whole(tokenizer, conversations, answers), conversations, answers, strict=True
        )
    ]
    end = turn_end(tokenizer)
    # Where a token spans the boundary, the answer is tokenized on its own: in generation, the prompt is complete.
    alone = [text[len(prompt) :] for prompt, text in zip(asked, texts, strict=True)]
    turns = []
    for ids, full, separate in zip(*(token_ids(tokenizer, each) for each in (asked, texts, alone)), strict=True):
        answer_ids = full[len(ids) :] if full[: len(ids)] == ids else separate
        turns.append(Turn(ids, answer_ids[: len(answer_ids) - answer_ids[::-1].index(end)]))
    return turns


def _whole(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]], answers: Sequence[str]
) -> list[str]:
    complete = [
        (*conversation, Message("assistant", answer))
        for conversation, answer in zip(conversations, answers, strict=True)
    ]
    return _texts(tokenizer, complete, asking=False)


def _after(tokenizer: PreTrainedTokenizerBase, prompt: str, whole: str, conversation: Conversation, answer: str) -> str:
    """Return what the template writes after the opening of an answer's turn.

    Some templates (Mistral) write a system prompt only into the last message of a conversation, so not before an
    answer; what follows the prompt is then taken from the conversation without it.
    """
    rest = [message for message in conversation if message.role != "system"]
    if not whole.startswith(prompt) and len(rest) < len(conversation):
        (prompt,), (whole,) = _texts(tokenizer, [rest], asking=True), _whole(tokenizer, [rest], [answer])
    if not whole.startswith(prompt) or answer.strip() not in whole[len(prompt) :]:
        raise ModelError(
            "the tokenizer's chat template does not write an answer as the continuation of its prompt "
            f"(`{prompt[-_SHOWN:]}`, and with the answer `{whole[-_SHOWN:]}`), so the model would not be trained on "
            "what it generates; templates of reasoning models may open a thought in the prompt only, or drop it from "
            f"the answer. {_CHOOSE}"
        )
    return whole[len(prompt) :]


def check(tokenizer: PreTrainedTokenizerBase, *, system: bool) -> None:
    """Check that the chat template can be used.

    Args:
        tokenizer: the model's tokenizer.
        system: whether it has to have a system prompt.

    Raises:
        ModelError: as ``answered``.
    """
    first = (Message("system", _PROBE),) if system else ()
    answered(tokenizer, [(*first, Message("user", _PROBE))], [_PROBE])


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token with which the chat template ends an answer, which need not be the tokenizer's end token.

    Raises:
        ModelError: the tokenizer has no usable chat template, or it ends an answer without a special token.
    """
    (text,) = _texts(tokenizer, [(Message("user", _PROBE), Message("assistant", _PROBE))], asking=False)
    tail = text.rpartition(_PROBE)[2]
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    special.discard(tokenizer.unk_token_id)
    found = [token for token in token_ids(tokenizer, [tail])[0] if token in special]
    if not found:
        raise ModelError(
            f"the tokenizer's chat template ends an answer with `{tail}`, which contains no special token; expected "
            f"one, at which generation stops. {_CHOOSE}"
        )
    return found[0]


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, added: bool = False) -> list[list[int]]:
    """Return the token ids of texts, in one tokenizer call.

    Args:
        tokenizer: the model's tokenizer.
        texts: special tokens may occur in them.
        added: with the special tokens that the tokenizer adds to a text.
    """
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(
        list(texts), add_special_tokens=added, truncation=False, padding=False, verbose=False
    )["input_ids"]
    return ids


def _texts(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]], *, asking: bool
) -> list[str]:
    """Return conversations as text; ``asking`` adds the opening of the turn that answers."""
    from jinja2 import TemplateError

    if not conversations:
        return []
    _check(tokenizer)
    if any(message.role == "system" for conversation in conversations for message in conversation):
        _check_system(tokenizer)
    try:
        return _rendered(tokenizer, conversations, asking=asking)
    except TemplateError as error:
        raise ModelError(f"the tokenizer's chat template rejects a conversation ({error}). {_CHOOSE}") from error


def _check(tokenizer: PreTrainedTokenizerBase) -> None:
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise ModelError(
            "the model's tokenizer has no chat template; expected an instruct model for the template `chat`. Set "
            "`model.encoding.template=alpaca`, or choose a `model` whose tokenizer has one"
        ) from error
    if "strftime_now" in template and "date_string" not in template:
        raise ModelError(
            "the tokenizer's chat template writes today's date, so that the same run would have another prompt "
            f"tomorrow; expected one without a date, or with the variable `date_string`. {_CHOOSE}"
        )


def _check_system(tokenizer: PreTrainedTokenizerBase) -> None:
    from jinja2 import TemplateError

    try:
        (text,) = _rendered(tokenizer, [(Message("system", _PROBE), Message("user", "?"))], asking=True)
    except TemplateError as error:
        reason = str(error)
    else:
        if _PROBE in text:
            return
        reason = "the template does not write it"
    raise ModelError(
        f"the tokenizer's chat template has no system prompt ({reason}); expected none. Leave `system` of the encoding "
        "empty (null), or put the text before the request"
    )


def _rendered(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]], *, asking: bool
) -> list[str]:
    messages = [[message._asdict() for message in conversation] for conversation in conversations]
    texts: list[str] = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=asking, date_string=DATE
    )
    return texts
