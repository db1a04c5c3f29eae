"""Costs: how long stages will take, from the manifests of earlier ones of the same kind and origin."""

import statistics
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from harness.engine.stage import Stage, origin_of
from harness.engine.store import Store
from harness.errors import StoreError

SAMPLE = 200
"""Manifests of a kind that are read, at most: a store may hold a hundred thousand."""


class Cost(NamedTuple):
    """What the stages of a kind will take.

    Attributes:
        stages: how many there are.
        known: for how many of them an earlier stage of the same kind and origin tells.
        seconds: the wall time of those, one after another.
    """

    stages: int
    known: int
    seconds: float


def predicted(stages: Iterable[Stage], store: Store) -> dict[str, Cost]:
    """Return what stages will cost, by kind."""
    counts = Counter((stage.name, origin_of(stage)) for stage in stages)
    rates = _rates({kind for kind, _ in counts}, store)
    costs: dict[str, Cost] = {}
    for (kind, origin), count in counts.items():
        before = costs.get(kind, Cost(0, 0, 0.0))
        rate = rates.get((kind, origin))
        known = count if rate is not None else 0
        costs[kind] = Cost(before.stages + count, before.known + known, before.seconds + count * (rate or 0.0))
    return costs


def _rates(kinds: Iterable[str], store: Store) -> dict[tuple[str, str], float]:
    """Return the median seconds of a stage, by kind and origin."""
    seen: dict[tuple[str, str], list[float]] = {}
    for kind in kinds:
        # A preview does not stop at a manifest that cannot be read; whoever needs it will say so.
        with suppress(StoreError):
            for manifest in store.manifests(kind, SAMPLE):
                seen.setdefault((kind, manifest.origin), []).append(manifest.seconds)
    return {which: statistics.median(seconds) for which, seconds in seen.items()}
