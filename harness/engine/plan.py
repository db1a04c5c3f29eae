"""A plan: the deduplicated, ordered graph of the stages that a set of leaves needs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from harness.engine.stage import Stage, lineage
from harness.engine.store import Store
from harness.errors import DataError, Problem


class Count(NamedTuple):
    """Number of distinct stages of a kind in a plan, and how many of them are stored."""

    total: int
    stored: int


@dataclass(frozen=True)
class Plan:
    """A deduplicated graph of stages.

    Attributes:
        leaves: the requested stages, without duplicates.
        stages: the leaves and all their ancestors, without duplicates, parents before children, each leaf as early as
            possible.
    """

    leaves: tuple[Stage, ...]
    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, leaves: Iterable[Stage]) -> "Plan":
        """Return the plan for the leaves and all their ancestors."""
        distinct = tuple(dict.fromkeys(leaves))
        return cls(leaves=distinct, stages=lineage(distinct))

    @classmethod
    def single(cls, stage: Stage) -> "Plan":
        """Return the plan of one stage without its ancestors."""
        return cls(leaves=(stage,), stages=(stage,))

    def count(self, store: Store) -> dict[str, Count]:
        """Return the counts by kind, in order of first occurrence."""
        counts: dict[str, Count] = {}
        for stage in self.stages:
            total, stored = counts.get(stage.name, Count(0, 0))
            counts[stage.name] = Count(total + 1, stored + store.has(stage))
        return counts

    def pending(self, store: Store) -> tuple[Stage, ...]:
        """Return the stages that have to run, parents before children.

        Ancestors of a stored leaf are not recomputed, even if they were deleted. A leaf that is not stored needs all
        its ancestors within the plan, because a stage may read any of them.
        """
        needed = set(lineage(tuple(leaf for leaf in self.leaves if not store.has(leaf))))
        return tuple(stage for stage in self.stages if stage in needed and not store.has(stage))

    def preflight(self, store: Store) -> None:
        """Run the preflight checks of every pending stage.

        Raises:
            DataError: one or more checks failed; lists all distinct problems. Nothing has run.
        """
        found = (Problem.of(stated) for stage in self.pending(store) for stated in stage.preflight())
        if problems := dict.fromkeys(found):
            raise DataError("\n".join(map(str, problems)))
