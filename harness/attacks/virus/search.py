"""Greedy coordinate gradient (Zou et al., 2023, arXiv:2307.15043): which single exchanges of a token are tried."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

Suffix = list[int]

TRIES = 16
"""Random tokens that are tried at a place before another place is taken."""


def allowed_tokens(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> Tensor:
    """Return which tokens a suffix may be given: printable ASCII and not special, ``[vocabulary]``.

    Args:
        tokenizer: that of victim and guard.
        vocabulary: the number of embeddings; those beyond the tokenizer's are not allowed.
    """
    special = {*tokenizer.all_special_ids, *(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)}
    allowed = torch.zeros(vocabulary, dtype=torch.bool)
    ids = [index for index in tokenizer.get_vocab().values() if index < vocabulary and index not in special]
    texts = tokenizer.batch_decode([[index] for index in ids], clean_up_tokenization_spaces=False)
    for index, text in zip(ids, texts, strict=True):
        allowed[index] = text.isascii() and text.isprintable() and text != ""
    return allowed


def proposals(gradient: Tensor, allowed: Tensor, top_k: int) -> list[list[int]]:
    """Return the ``top_k`` allowed tokens at each position that lower the objective most, to first order, best first.

    Args:
        gradient: of the objective with respect to the one-hot tokens, ``[suffix, vocabulary]``.
        allowed: which tokens may be chosen, ``[vocabulary]``.
        top_k: tokens per position; all if fewer are allowed.
    """
    scores = (-gradient).masked_fill(~allowed, float("-inf"))
    best: list[list[int]] = scores.topk(min(top_k, int(allowed.sum())), dim=1).indices.tolist()
    return best


def exchanges(
    suffix: Suffix,
    proposed: Sequence[Sequence[int]],
    *,
    count: int,
    admit: Callable[[list[Suffix]], list[T | None]],
    rng: Random,
) -> list[tuple[Suffix, T]]:
    """Draw suffixes that differ from the current one in a single token, without replacement.

    Args:
        suffix: the current suffix.
        proposed: tokens for each of its positions; the one that stands there is no exchange.
        count: how many are drawn; fewer only if there are fewer that are admitted.
        admit: returns what belongs to each suffix, or None for one that is not admitted.
        rng: draws positions and tokens uniformly.
    """
    pairs = [(place, token) for place, tokens in enumerate(proposed) for token in tokens if token != suffix[place]]
    rng.shuffle(pairs)
    found: list[tuple[Suffix, T]] = []
    while pairs and len(found) < count:
        taken, pairs = pairs[: count - len(found)], pairs[count - len(found) :]
        tried = [[*suffix[:place], token, *suffix[place + 1 :]] for place, token in taken]
        found += [(each, made) for each, made in zip(tried, admit(tried), strict=True) if made is not None]
    return found


def random_exchanges(
    suffix: Suffix,
    allowed: Sequence[int],
    *,
    count: int,
    admit: Callable[[list[Suffix]], list[T | None]],
    rng: Random,
) -> tuple[Suffix, T | None]:
    """Exchange tokens at random places for random ones, one after the other.

    Args:
        suffix: the suffix.
        allowed: the tokens that it may be given.
        count: the number of exchanges, each at a place of its own; fewer only if there are fewer places where one of
            ``TRIES`` random tokens is admitted.
        admit: returns what belongs to each suffix, or None for one that is not admitted.
        rng: draws places and tokens uniformly.

    Returns:
        The suffix, and what ``admit`` returned for it; None without an exchange.
    """
    found: tuple[Suffix, T | None] = suffix, None
    places = rng.sample(range(len(suffix)), len(suffix))
    for place in places:
        if not count:
            break
        current = found[0]
        others = [token for token in rng.sample(allowed, min(TRIES, len(allowed))) if token != current[place]]
        tried = [[*current[:place], token, *current[place + 1 :]] for token in others]
        made = next((pair for pair in zip(tried, admit(tried), strict=True) if pair[1] is not None), None)
        if made is not None:
            found, count = made, count - 1
    return found
