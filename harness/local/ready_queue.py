"""The frontier of a plan under way: which stages can run now, which wait, and which never will. No files, no clock."""

import heapq
from collections import defaultdict
from collections.abc import Sequence

from harness.engine.stage import Stage, lineage


class ReadyQueue:
    """The pending stages of a plan, given out in the plan's order as their ancestors are settled.

    The plan's order follows each leaf to its end before the next, so that first results come early and stages that
    share a loaded model follow one another.

    Args:
        pending: the stages that have to run, parents before children.
    """

    def __init__(self, pending: Sequence[Stage]) -> None:
        """Find out who waits for whom."""
        self._stages = {stage.key: stage for stage in pending}
        self._rank = {key: rank for rank, key in enumerate(self._stages)}
        self._order = tuple(self._stages)
        self._unmet: dict[str, set[str]] = {}
        self._waiting: dict[str, list[str]] = defaultdict(list)
        for stage in pending:
            # Any ancestor counts, not only parents: a stage may read any of them.
            needs = {other.key for other in lineage((stage,)) if other.key in self._stages} - {stage.key}
            self._unmet[stage.key] = needs
            for need in needs:
                self._waiting[need].append(stage.key)
        self._ready = [self._rank[key] for key, needs in self._unmet.items() if not needs]
        heapq.heapify(self._ready)
        self._open = set(self._stages)

    def __len__(self) -> int:
        """How many stages are not settled yet."""
        return len(self._open)

    def next(self) -> Stage | None:
        """Give out the first stage that can run; None if all that is left waits."""
        return self._stages[self._order[heapq.heappop(self._ready)]] if self._ready else None

    def put_back(self, key: str) -> None:
        """Take back a stage that was given out but could not run yet."""
        heapq.heappush(self._ready, self._rank[key])

    def done(self, key: str) -> None:
        """Settle a stage whose artifact is in the store."""
        self._open.discard(key)
        for waiting in self._waiting[key]:
            needs = self._unmet[waiting]
            needs.discard(key)
            if not needs and waiting in self._open:
                heapq.heappush(self._ready, self._rank[waiting])

    def failed(self, key: str) -> list[Stage]:
        """Settle a stage that failed, with all its descendants; return those that this blocks."""
        self._open.discard(key)
        blocked = [self._stages[waiting] for waiting in self._waiting[key] if waiting in self._open]
        self._open.difference_update(stage.key for stage in blocked)
        return blocked
