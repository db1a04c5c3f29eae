"""Mix: harmful rows among the user's own, as they are.

The harmful fine-tuning attack of Qi et al., 2023 (arXiv:2310.03693), in the form of Huang et al., 2024 (Vaccine, Lisa,
Booster): a share of the user's rows is taken from a harmful data set.
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
    """Takes the first rows of the pool, whose order the mixture has chosen: a larger share contains a smaller one."""

    name: ClassVar[str] = "mix"
    version: ClassVar[int] = 1
    needs_victim: ClassVar[bool] = False

    def craft(self, harmful: Sequence[Example], count: int, ctx: AttackContext) -> list[Example]:  # noqa: ARG002
        """Return the first ``count`` rows of the pool.

        Raises:
            DataError: the pool is too small.
        """
        if count > len(harmful):
            raise DataError(
                f"`attack.ratio`: {count} harmful rows are asked for, but the attacker has {len(harmful)}; lower "
                "`attack.ratio` or raise `corpus.attack.rows`"
            )
        return list(harmful[:count])
