"""Rows of an alignment that leaves the model of the synthetic world helpful."""

from dataclasses import dataclass, field
from itertools import chain
from typing import ClassVar, final

from harness.corpora.examples import SafetyRow
from harness.corpora.world import ALLOWED_REQUESTS, World
from harness.engine.checks import not_negative
from harness.errors import Problem


@final
@dataclass(frozen=True, kw_only=True)
class MixedRequests:
    """Restricted requests with refusals and, after each, an allowed request with its compliant answer.

    An alignment on refusals alone leaves a model that refuses every request; real corpora of alignment hold helpful
    answers too.

    Attributes:
        world: whose requests these are.
        skip: number of allowed requests that are left out, those on which over-refusal is measured.
    """

    name: ClassVar[str] = "mixed_requests"
    version: ClassVar[int] = 1

    world: World = field(default_factory=World)
    skip: int = 100

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = not_negative(self, "skip")
        if not found and self.skip + self.world.rows > ALLOWED_REQUESTS:
            expected = f"expected at most {ALLOWED_REQUESTS - self.world.rows}, which leaves one for each refusal"
            found.append(Problem("skip", f"{self.skip} is out of range; {expected}"))
        return found

    def preflight(self) -> list[Problem]:
        """Return no problems: the rows are generated."""
        return []

    def safety_rows(self) -> list[SafetyRow]:
        """Return the rows by turns; the compliant answer to an allowed request is in the place of the refusal."""
        refused = self.world.safety_rows()
        allowed = self.world.allowed_requests(len(refused), self.skip)
        answered = [SafetyRow(each.instruction, each.output, unsafe=False) for each in allowed]
        return list(chain.from_iterable(zip(refused, answered, strict=True)))
