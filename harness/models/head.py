"""Tied output heads: whether a base model's head shares its weights with the input embeddings.

An adapter on a separate head can be merged like any other. On a tied head it cannot, because merging would change the
embeddings too.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from harness.errors import Problem

HEAD = "lm_head"
"""Module name of the output head."""


@runtime_checkable
class KnowsHead(Protocol):
    """Optional: a model source that knows, before loading, whether the head is tied."""

    def ties_head(self) -> bool | None:
        """Return whether the head shares the input embeddings; None if that cannot be determined yet."""
        ...


def unmergeable(source: object, targets: Sequence[str]) -> list[Problem]:
    """Return why an adapter on these layers cannot be merged into the base, as far as its source knows.

    Args:
        source: the source of the base.
        targets: names of the adapted layers, or ``all-linear``, which leaves the head out.
    """
    return [ADVICE] if HEAD in targets and isinstance(source, KnowsHead) and source.ties_head() else []


ADVICE = Problem(
    "finetune.adapter",
    f"`double` merges the aligned adapter into the base, but `{HEAD}` of this model is tied to its "
    f"input embeddings, so an adapter on it cannot be merged; expected targets without it. Remove `{HEAD}` from "
    "`align.adapter.targets`, or set `finetune.adapter=single`",
)
