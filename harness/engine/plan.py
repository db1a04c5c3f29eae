"""A plan: the deduplicated, ordered graph of the stages that a set of leaves needs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from harness.engine.stage import Stage, lineage
from harness.engine.store import Store
from harness.errors import DataError, Problem


class Count(NamedTuple):
    """How many distinct stages of a kind a plan holds, and how many of them are in the store."""

    total: int
    stored: int


@dataclass(frozen=True)
class Plan:
    """The stages of a plan.

    Attributes:
        leaves: what was asked for, once each.
        stages: the leaves and all their ancestors, once each, parents before children, each leaf as early as possible.
    """

    leaves: tuple[Stage, ...]
    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, leaves: Iterable[Stage]) -> "Plan":
        """Return the plan that makes the leaves."""
        distinct = tuple(dict.fromkeys(leaves))
        return cls(leaves=distinct, stages=lineage(distinct))

    @classmethod
    def single(cls, stage: Stage) -> "Plan":
        """Return the plan that makes one stage and none of its ancestors."""
        return cls(leaves=(stage,), stages=(stage,))

    def count(self, store: Store) -> dict[str, Count]:
        """Return the counts by kind, in the order in which the kinds first occur."""
        counts: dict[str, Count] = {}
        for stage in self.stages:
            total, stored = counts.get(stage.name, Count(0, 0))
            counts[stage.name] = Count(total + 1, stored + store.has(stage))
        return counts

    def pending(self, store: Store) -> tuple[Stage, ...]:
        """Return the stages that have to run, parents before children.

        The ancestors of a stored leaf are left alone, even those that were deleted. A leaf that is not stored needs
        all its ancestors, as far as they belong to the plan, because a stage may read any of them.
        """
        needed = set(lineage(tuple(leaf for leaf in self.leaves if not store.has(leaf))))
        return tuple(stage for stage in self.stages if stage in needed and not store.has(stage))

    def preflight(self, store: Store) -> None:
        """Ask every pending stage what would stop it.

        Raises:
            DataError: with all distinct problems; nothing has run.
        """
        found = (Problem.of(stated) for stage in self.pending(store) for stated in stage.preflight())
        if problems := dict.fromkeys(found):
            raise DataError("\n".join(map(str, problems)))
