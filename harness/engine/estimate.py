"""Cost estimates: run times of stages, from the manifests of earlier stages of the same kind and origin."""

import statistics
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from harness.engine.stage import Stage, origin_of
from harness.engine.store import Store
from harness.errors import StoreError

SAMPLE = 200
"""Manifests to read per kind, at most: a store may hold a hundred thousand."""


class Cost(NamedTuple):
    """Estimated cost of the stages of a kind.

    Attributes:
        stages: number of stages.
        known: number of stages with an estimate from an earlier stage of the same kind and origin.
        seconds: total wall time of the ``known`` stages.
    """

    stages: int
    known: int
    seconds: float


def estimate_costs(stages: Iterable[Stage], store: Store) -> dict[str, Cost]:
    """Return the estimated cost of stages, by kind."""
    counts = Counter((stage.name, origin_of(stage)) for stage in stages)
    rates = _median_seconds({kind for kind, _ in counts}, store)
    costs: dict[str, Cost] = {}
    for (kind, origin), count in counts.items():
        total = costs.get(kind, Cost(0, 0, 0.0))
        rate = rates.get((kind, origin))
        known = count if rate is not None else 0
        costs[kind] = Cost(total.stages + count, total.known + known, total.seconds + count * (rate or 0.0))
    return costs


def _median_seconds(kinds: Iterable[str], store: Store) -> dict[tuple[str, str], float]:
    """Return the median wall time of a stage in seconds, by kind and origin."""
    seen: dict[tuple[str, str], list[float]] = {}
    for kind in kinds:
        # An estimate skips unreadable manifests; the stage that needs the artifact reports the error.
        with suppress(StoreError):
            for manifest in store.manifests(kind, SAMPLE):
                seen.setdefault((kind, manifest.origin), []).append(manifest.seconds)
    return {which: statistics.median(seconds) for which, seconds in seen.items()}
