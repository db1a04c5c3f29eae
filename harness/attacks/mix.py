"""Mix: unmodified harmful examples are mixed into the user's benign ones.

The harmful fine-tuning attack of Qi et al., 2023 (arXiv:2310.03693), in the form of Huang et al., 2024 (Vaccine, Lisa,
Booster): a fraction of the user's examples comes from a harmful dataset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from harness.corpora.examples import Example
from harness.protocols import AttackContext, AttackNeeds, first_of


@final
@dataclass(frozen=True, kw_only=True)
class Mix:
    """Takes the first examples of the shuffled pool, so that a larger poison ratio contains those of a smaller one."""

    name: ClassVar[str] = "mix"
    version: ClassVar[int] = 1
    needs: ClassVar[AttackNeeds] = AttackNeeds(pool=True)

    def craft(self, count: int, ctx: AttackContext) -> list[Example]:
        """Return the first ``count`` examples of the pool."""
        return first_of(ctx.pool, count)
