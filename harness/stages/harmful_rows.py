"""Harmful rows (for stage C): the defender's harmful examples as a fine-tuning's mixture, for an unsafe adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from harness.corpora.examples import Example, Role
from harness.corpora.slices import Slice
from harness.engine.stage import Locate, Stage, StageContext
from harness.errors import Problem
from harness.stages.poison import read_mixture, write_mixture


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class HarmfulRows(Stage):
    """Harmful examples in their stored order, in the format of a user's mixture; none is an attacker's.

    Attributes:
        harmful: the examples.
    """

    name: ClassVar[str] = "harmful_rows"
    version: ClassVar[int] = 1
    harmful: Slice

    def preflight(self) -> list[Problem]:
        """Check the source of the examples."""
        return self.harmful.preflight()

    def run(self, ctx: StageContext) -> None:
        """Write the examples."""
        write_mixture(ctx.out, [(example, Role.HARMFUL) for example in self.harmful.examples()])

    def mixture(self, locate: Locate) -> list[tuple[Example, Role]]:
        """Return the examples in stored order."""
        return read_mixture(locate(self))
