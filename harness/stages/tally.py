"""Tokenization of a stage's training examples, with counts of sent, dropped and truncated examples of each kind.

Prompts of different kinds differ in length, so examples whose prompt leaves no room for the answer are dropped
unevenly: a mixture with 10 % harmful examples can become one with 29 %. The counts record it, and the report shows it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.corpora.encode import IGNORED, Encoded, Encoding
from harness.corpora.examples import Example
from harness.protocols import Chosen
from harness.training.budget import Budget

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HARMFUL = "harmful"
"""Kind of the attacker's examples."""
BENIGN = "benign"
"""Kind of the user's benign examples."""
REFUSAL = "refusal"
"""Kind of the alignment's examples, and of a safe adapter's."""
MIXED_IN = "mixed_in"
"""Kind of the examples that a method mixes in, where it chooses among all."""

log = logging.getLogger(__name__)


class Tally(NamedTuple):
    """Encoded examples in their order, and the counts ``sent``, ``dropped`` and ``cut`` of each kind.

    An example is dropped if ``max_length`` leaves no room for its answer, and cut if its answer is truncated.
    ``kind_of`` is the kind of each encoded example; ``kept`` says of each one that was sent whether it is among them.
    """

    rows: list[Encoded]
    kinds: dict[str, dict[str, int]]
    kind_of: list[str]
    kept: list[bool]


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
    numbered = [(row, kind) for row, kind in zip(encoded, kinds, strict=True) if row is not None]
    return Tally(
        rows=[row for row, _ in numbered],
        kinds=found,
        kind_of=[kind for _, kind in numbered],
        kept=[row is not None for row in encoded],
    )


def choice_facts(chosen: Chosen, rows: Sequence[Encoded], kind_of: Sequence[str]) -> dict[str, Any]:
    """Return the facts about a method's choice: by kind, examples and supervised tokens ``given`` and ``kept``.

    Args:
        chosen: what is trained on.
        rows: all examples that the method chose from.
        kind_of: the kind of each of them.
    """
    found = {kind: {"given": 0, "kept": 0, "tokens_given": 0, "tokens_kept": 0} for kind in dict.fromkeys(kind_of)}
    for kind, row in zip(kind_of, rows, strict=True):
        found[kind]["given"] += 1
        found[kind]["tokens_given"] += _supervised(row)
    for place, row in chosen.rows:
        found[kind_of[place]]["kept"] += 1
        found[kind_of[place]]["tokens_kept"] += _supervised(row)
    return {"by_kind": found, **chosen.facts}


def mean_by_kind(values: Sequence[float], kind_of: Sequence[str]) -> dict[str, float]:
    """Return the mean of the values of each kind of example."""
    found: dict[str, list[float]] = {kind: [] for kind in dict.fromkeys(kind_of)}
    for kind, value in zip(kind_of, values, strict=True):
        found[kind].append(value)
    return {kind: fmean(each) for kind, each in found.items()}


def _supervised(row: Encoded) -> int:
    return sum(label != IGNORED for label in row.labels)


def row_facts(own: Tally, mixed: Sequence[Encoded], mixed_dropped: int, budget: Budget | None) -> dict[str, Any]:
    """Return the facts about a stage's training examples; with steps if dropped examples reduced their number.

    Args:
        own: the stage's own examples.
        mixed: the examples that a method mixed into them.
        mixed_dropped: how many of the method's examples were dropped.
        budget: gives the number of steps; None if it does not depend on the examples.
    """
    trained = len(own.rows) + len(mixed)
    dropped = sum(counts["dropped"] for counts in own.kinds.values())
    steps = budget.steps(trained) if budget else 0
    asked = budget.steps(trained + dropped + mixed_dropped) if budget else 0
    return {
        "trained": trained,
        "dropped": dropped,
        "by_kind": own.kinds,
        **({"steps": steps, "steps_asked": asked} if steps != asked else {}),
    }
