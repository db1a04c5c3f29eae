"""The ready queue: which pending stages can run now, which wait for others, and which are blocked. Does no I/O."""

import heapq
from collections import defaultdict
from collections.abc import Sequence

from harness.engine.stage import Stage, lineage


class ReadyQueue:
    """The pending stages of a plan, handed out in plan order as soon as their ancestors are settled.

    The plan lists all stages of one leaf before those of the next. In this order the first results arrive early, and
    stages that use the same loaded model run one after another.

    Args:
        pending: the stages that have to run, parents before children.
    """

    def __init__(self, pending: Sequence[Stage]) -> None:
        """Build the dependency graph."""
        self._stages = {stage.key: stage for stage in pending}
        self._rank = {key: rank for rank, key in enumerate(self._stages)}
        self._order = tuple(self._stages)
        self._unmet_needs: dict[str, set[str]] = {}
        self._dependents: dict[str, list[str]] = defaultdict(list)
        for stage in pending:
            # All ancestors, not only parents: a stage may read any of them.
            needs = {other.key for other in lineage((stage,)) if other.key in self._stages} - {stage.key}
            self._unmet_needs[stage.key] = needs
            for need in needs:
                self._dependents[need].append(stage.key)
        self._ready = [self._rank[key] for key, needs in self._unmet_needs.items() if not needs]
        heapq.heapify(self._ready)
        self._open = set(self._stages)

    def __len__(self) -> int:
        """Number of stages that are not settled."""
        return len(self._open)

    def next(self) -> Stage | None:
        """Hand out the first stage that is ready to run; None if every remaining stage waits for another."""
        return self._stages[self._order[heapq.heappop(self._ready)]] if self._ready else None

    def put_back(self, key: str) -> None:
        """Return a stage to the queue that was handed out but could not run yet."""
        heapq.heappush(self._ready, self._rank[key])

    def done(self, key: str) -> None:
        """Mark a stage as settled: its artifact is in the store."""
        self._open.discard(key)
        for dependent in self._dependents[key]:
            needs = self._unmet_needs[dependent]
            needs.discard(key)
            if not needs and dependent in self._open:
                heapq.heappush(self._ready, self._rank[dependent])

    def failed(self, key: str) -> list[Stage]:
        """Mark a stage as failed, and settle its descendants as well; return those that are newly blocked."""
        self._open.discard(key)
        blocked = [self._stages[dependent] for dependent in self._dependents[key] if dependent in self._open]
        self._open.difference_update(stage.key for stage in blocked)
        return blocked
