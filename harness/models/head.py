"""The output head: whether a base model shares its weights with the input embeddings.

An adapter on a head of its own can be merged like any other. One on a shared matrix cannot: the sum would change the
embeddings as well.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from harness.errors import Problem

HEAD = "lm_head"
"""What the output head is called as a linear layer."""


@runtime_checkable
class KnowsHead(Protocol):
    """What a model source may say before the model is loaded."""

    def ties_head(self) -> bool | None:
        """Return whether the head is the input embeddings; None where this machine does not know yet."""
        ...


def unmergeable(source: object, targets: Sequence[str]) -> list[Problem]:
    """Return why an adapter on these layers cannot be merged into a base, as far as its source knows.

    Args:
        source: of the base.
        targets: last names of the layers that the adapter is on.
    """
    return [ADVICE] if HEAD in targets and isinstance(source, KnowsHead) and source.ties_head() else []


ADVICE = Problem(
    "finetune.adapter",
    f"`double` merges the aligned adapter into the base, but `{HEAD}` of this model is its input "
    f"embeddings, so that an adapter on it cannot be merged; expected targets without it. Take `{HEAD}` out of "
    "`align.adapter.targets`, or set `finetune.adapter=single`",
)
