"""Refusals (for stage C): refusals of the corpus as the mixture of a fine-tuning, which makes a safe adapter."""

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
class Refusals(Stage):
    """Refusals in their stored order, in the format of a user's mixture; none is an attacker's.

    Attributes:
        refusal: the refusals.
    """

    name: ClassVar[str] = "refusals"
    version: ClassVar[int] = 1
    refusal: Slice

    def preflight(self) -> list[Problem]:
        """Check the source of the refusals."""
        return self.refusal.preflight()

    def run(self, ctx: StageContext) -> None:
        """Write the refusals."""
        write_mixture(ctx.out, [(example, Role.REFUSAL) for example in self.refusal.examples()])

    def mixture(self, locate: Locate) -> list[tuple[Example, Role]]:
        """Return the refusals in stored order."""
        return read_mixture(locate(self))
