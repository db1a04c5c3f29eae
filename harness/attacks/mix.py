"""Mix: unmodified harmful examples are mixed into the user's benign ones.

The harmful fine-tuning attack of Qi et al., 2023 (arXiv:2310.03693), in the form of Huang et al., 2024 (Vaccine, Lisa,
Booster): a fraction of the user's examples comes from a harmful dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from harness.corpora.examples import Example
from harness.errors import DataError
from harness.protocols import AttackContext


@final
@dataclass(frozen=True, kw_only=True)
class Mix:
    """Takes the first examples of the shuffled pool, so that a larger poison ratio contains those of a smaller one."""

    name: ClassVar[str] = "mix"
    version: ClassVar[int] = 1
    needs_victim: ClassVar[bool] = False

    def craft(self, harmful: Sequence[Example], count: int, ctx: AttackContext) -> list[Example]:  # noqa: ARG002
        """Return the first ``count`` examples of the pool.

        Raises:
            DataError: the pool is too small.
        """
        if count > len(harmful):
            raise DataError(
                f"`attack.ratio`: {count} harmful rows requested, but the attacker has {len(harmful)}; lower "
                "`attack.ratio` or raise `corpus.attack.rows`"
            )
        return list(harmful[:count])
