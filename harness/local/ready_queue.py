"""The ready queue: which pending stages can run now, which wait for others, and which are blocked. Does no I/O."""

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from harness.engine.stage import Stage, lineage, origin_of


class Assignment(NamedTuple):
    """A stage and the number of the worker that runs it."""

    stage: Stage
    worker: int


class ReadyQueue:
    """The pending stages of a plan, handed out in plan order as soon as their ancestors are settled.

    The plan lists all stages of one leaf before those of the next, so the first results arrive early. Stages of several
    bases leave this order so that workers need not load one base after the other: a worker runs what its base is loaded
    for, as long as there is any, and takes another base when there is none. It never idles while a stage is ready.

    Args:
        pending: the stages that have to run, parents before children.
    """

    def __init__(self, pending: Sequence[Stage]) -> None:
        """Build the dependency graph."""
        self._stages = {stage.key: stage for stage in pending}
        self._rank = {key: rank for rank, key in enumerate(self._stages)}
        self._order = tuple(self._stages)
        self._base = {stage.key: base_of(stage) for stage in pending}
        self._unmet_needs: dict[str, set[str]] = {}
        self._dependents: dict[str, list[str]] = defaultdict(list)
        for stage in pending:
            # All ancestors, not only parents: a stage may read any of them.
            needs = {other.key for other in lineage((stage,)) if other.key in self._stages} - {stage.key}
            self._unmet_needs[stage.key] = needs
            for need in needs:
                self._dependents[need].append(stage.key)
        self._ready: dict[str, list[int]] = defaultdict(list)
        """Ranks of the stages that are ready, as a heap for each base; those that load none are under an empty text."""
        for key, needs in self._unmet_needs.items():
            if not needs:
                self.put_back(key)
        self._open = set(self._stages)

    def __len__(self) -> int:
        """Number of stages that are not settled."""
        return len(self._open)

    def next(self, workers: Mapping[int, str], idle: Sequence[int]) -> Assignment | None:
        """Hand out a stage that is ready to run; None if no worker is idle or every remaining stage waits for another.

        The first stage in plan order for which no worker has to drop a base or to load one that another worker holds;
        else one whose base no worker holds; else the first.

        Args:
            workers: the key of the base that each worker holds, or an empty text, by its number.
            idle: the workers that can run a stage, preferred ones first.
        """
        first = {base: ranks[0] for base, ranks in self._ready.items() if ranks}
        if not first or not idle:
            return None
        holders = {workers[number]: number for number in reversed(idle)}
        unheld = [base for base in first if base and base not in workers.values()]
        cheap = [base for base in first if not base or base in holders] + (unheld if "" in holders else [])
        base = min(cheap or unheld or first, key=first.__getitem__)
        stage = self._stages[self._order[heapq.heappop(self._ready[base])]]
        if base in holders and base:
            return Assignment(stage, holders[base])

        def cost(number: int) -> tuple[bool, bool]:
            held = workers[number]
            return bool(held) and held in first, bool(base and held)

        return Assignment(stage, min(idle, key=cost))

    def put_back(self, key: str) -> None:
        """Return a stage to the queue that was handed out but could not run yet."""
        heapq.heappush(self._ready[self._base[key]], self._rank[key])

    def done(self, key: str) -> None:
        """Mark a stage as settled: its artifact is in the store."""
        self._open.discard(key)
        for dependent in self._dependents[key]:
            needs = self._unmet_needs[dependent]
            needs.discard(key)
            if not needs and dependent in self._open:
                self.put_back(dependent)

    def failed(self, key: str) -> list[Stage]:
        """Mark a stage as failed, and settle its descendants as well; return those that are newly blocked."""
        self._open.discard(key)
        blocked = [self._stages[dependent] for dependent in self._dependents[key] if dependent in self._open]
        self._open.difference_update(stage.key for stage in blocked)
        return blocked


def base_of(stage: Stage) -> str:
    """Return the key of the base that a stage loads; an empty text if it loads none."""
    return origin_of(stage) if stage.loads_base else ""
