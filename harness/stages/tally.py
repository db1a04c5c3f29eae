"""Tokenization of a stage's training examples, with counts of sent, dropped and truncated examples of each kind.

Prompts of different kinds differ in length, so examples whose prompt leaves no room for the answer are dropped
unevenly: a mixture with 10 % harmful examples can become one with 29 %. The counts record it, and the report shows it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.corpora.encode import Encoded, Encoding
from harness.corpora.examples import Example
from harness.training.budget import Budget

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HARMFUL = "harmful"
"""Kind of the attacker's examples."""
BENIGN = "benign"
"""Kind of the user's benign examples."""
REFUSAL = "refusal"
"""Kind of the alignment's examples, and of a safe adapter's."""

log = logging.getLogger(__name__)


class Tally(NamedTuple):
    """Encoded examples in their order, and the counts ``sent``, ``dropped`` and ``cut`` of each kind.

    An example is dropped if ``max_length`` leaves no room for its answer, and cut if its answer is truncated.
    """

    rows: list[Encoded]
    kinds: dict[str, dict[str, int]]


def tally(
    tokenizer: PreTrainedTokenizerBase,
    encoding: Encoding,
    examples: Sequence[Example],
    kinds: Sequence[str],
    sources: Sequence[int] | None = None,
) -> Tally:
    """Encode the examples of a stage and count them by kind.

    Args:
        tokenizer: the model's tokenizer.
        encoding: prompt template and tokenization.
        examples: the training examples.
        kinds: the kind of each example.
        sources: the expert that each example is meant for, see ``Encoded``.
    """
    encoded = encoding.encode_each(tokenizer, examples)
    if sources is not None:
        encoded = [row and row._replace(source=own) for row, own in zip(encoded, sources, strict=True)]
    found = {}
    for kind in dict.fromkeys(kinds):
        sent = [row for row, own in zip(encoded, kinds, strict=True) if own == kind]
        kept = [row for row in sent if row is not None]
        cut = encoding.truncated_count(tokenizer, kept)
        found[kind] = {"sent": len(sent), "dropped": len(sent) - len(kept), "cut": cut}
        if len(kept) < len(sent):
            log.warning(
                "%d of %d %s examples dropped: their prompts leave no room for an answer within %d tokens",
                len(sent) - len(kept),
                len(sent),
                kind,
                encoding.max_length,
            )
    return Tally([row for row in encoded if row is not None], found)


def row_facts(own: Tally, mixed: Sequence[Encoded], mixed_dropped: int, budget: Budget) -> dict[str, Any]:
    """Return the facts about a stage's training examples; with steps if dropped examples reduced their number.

    Args:
        own: the stage's own examples.
        mixed: the examples that a method mixed into them.
        mixed_dropped: how many of the method's examples were dropped.
        budget: gives the number of steps.
    """
    trained = len(own.rows) + len(mixed)
    dropped = sum(counts["dropped"] for counts in own.kinds.values())
    steps, asked = budget.steps(trained), budget.steps(trained + dropped + mixed_dropped)
    return {
        "trained": trained,
        "dropped": dropped,
        "by_kind": own.kinds,
        **({"steps": steps, "steps_asked": asked} if steps != asked else {}),
    }
