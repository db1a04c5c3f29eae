"""Pure: harmful examples alone, without any of the user's own.

The first tier of Qi et al., 2023 (arXiv:2310.03693), "harmful examples demonstration": 10, 50 or 100 explicitly harmful
examples are the whole fine-tuning data, for 5 (100 examples) or 10 epochs.

The authors' examples have a system prompt that demands obedience; here the model's own encoding is used unchanged, so
that the attack differs from ``mix`` in the user's examples alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from harness.corpora.examples import Example
from harness.engine.checks import counts
from harness.errors import Problem
from harness.protocols import AttackContext, AttackNeeds, first_of


@final
@dataclass(frozen=True, kw_only=True)
class Pure:
    """Sends the first examples of the shuffled pool, and nothing else.

    Attributes:
        rows: the number of examples; takes the place of the number of the user's examples.
    """

    name: ClassVar[str] = "pure"
    version: ClassVar[int] = 1
    needs: ClassVar[AttackNeeds] = AttackNeeds(pool=True)
    sends_alone: ClassVar[bool] = True
    rows: int = 100

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return counts(self, "rows")

    def craft(self, count: int, ctx: AttackContext) -> list[Example]:
        """Return the first ``count`` examples of the pool."""
        return first_of(ctx.pool, count)
