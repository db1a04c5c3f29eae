"""Tally: the rows of a training stage as tokens, and how many of each kind were sent, dropped and cut.

Prompts of different kinds have different lengths, so that rows without room for their answer do not fall out evenly: a
mixture of 10 % harmful rows can be trained on as one of 29 %. The counts say so, and the report repeats it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.corpora.encode import Encoded, Encoding, cut_in
from harness.corpora.examples import Example
from harness.training.budget import Budget

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HARMFUL = "harmful"
"""The kind of the attacker's rows."""
BENIGN = "benign"
"""The kind of the user's own rows."""
REFUSAL = "refusal"
"""The kind of the rows of an alignment."""

log = logging.getLogger(__name__)


class Tally(NamedTuple):
    """Encoded rows in the order of their examples, and how many rows of each kind were ``sent``, ``dropped``, ``cut``.

    A dropped row has no room for any part of its answer; a cut one lost the end of its answer.
    """

    rows: list[Encoded]
    kinds: dict[str, dict[str, int]]


def tally(
    tokenizer: PreTrainedTokenizerBase, encoding: Encoding, examples: Sequence[Example], kinds: Sequence[str]
) -> Tally:
    """Encode the rows of a stage and count them.

    Args:
        tokenizer: of the model.
        encoding: how text becomes tokens.
        examples: the rows.
        kinds: what each of them is.
    """
    encoded = encoding.encode_each(tokenizer, examples)
    found = {}
    for kind in dict.fromkeys(kinds):
        sent = [row for row, own in zip(encoded, kinds, strict=True) if own == kind]
        kept = [row for row in sent if row is not None]
        found[kind] = {"sent": len(sent), "dropped": len(sent) - len(kept), "cut": cut_in(tokenizer, kept)}
        if len(kept) < len(sent):
            log.warning(
                "%d of %d %s rows dropped: no answer within %d tokens",
                len(sent) - len(kept),
                len(sent),
                kind,
                encoding.max_length,
            )
    return Tally([row for row in encoded if row is not None], found)


def described(tallied: Tally, mixed: Sequence[Encoded], unmixed: int, budget: Budget) -> dict[str, Any]:
    """Return the facts of a stage's rows; the steps are among them where dropped rows made them fewer.

    Args:
        tallied: the stage's own rows.
        mixed: what a method mixed into them.
        unmixed: how many rows it would have mixed in besides, had they not been dropped.
        budget: how many steps a number of rows takes.
    """
    trained = len(tallied.rows) + len(mixed)
    dropped = sum(counts["dropped"] for counts in tallied.kinds.values())
    steps, asked = budget.steps(trained), budget.steps(trained + dropped + unmixed)
    return {
        "trained": trained,
        "dropped": dropped,
        "by_kind": tallied.kinds,
        **({"steps": steps, "steps_asked": asked} if steps != asked else {}),
    }
