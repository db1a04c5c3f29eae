"""Facts about the rounds of a federated training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

from harness.corpora.shards import Shards


def federation_facts(shards: Shards, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what happened in the rounds.

    ``malicious``, the clients with the attacker's rows; ``participation``, the number of rounds of each client;
    ``malicious_slots``, the share of the participations that is malicious, and ``malicious_weight``, the mean over the
    rounds of the share that the aggregator gave them; ``update_norms`` of ``honest`` and ``malicious`` clients, means;
    ``cosines``, the mean cosine between the updates of a round for pairs of ``honest``, of ``malicious`` and of
    ``mixed`` clients; with ``average: product`` also ``lost``, the mean share of the norm that a round lost. A mean
    over nothing is null.

    Args:
        shards: which client holds which rows.
        rounds: the records of the rounds, see ``harness.training.federated.train_rounds``.
    """
    malicious = shards.malicious
    slots = [client for record in rounds for client in record["clients"]]
    norms: dict[str, list[float]] = {"honest": [], "malicious": []}
    cosines: dict[str, list[float]] = {"honest": [], "malicious": [], "mixed": []}
    weights = []
    for record in rounds:
        bad = [client in malicious for client in record["clients"]]
        weights.append(sum(weight for weight, is_bad in zip(record["weights"], bad, strict=True) if is_bad))
        for norm, is_bad in zip(record["norms"], bad, strict=True):
            norms["malicious" if is_bad else "honest"].append(norm)
        for one, other in combinations(range(len(bad)), 2):
            kind = "mixed" if bad[one] != bad[other] else "malicious" if bad[one] else "honest"
            cosines[kind].append(record["cosines"][one][other])
    facts: dict[str, Any] = {
        "malicious": sorted(malicious),
        "participation": [slots.count(client) for client in range(shards.clients)],
        "malicious_slots": _mean(client in malicious for client in slots),
        "malicious_weight": _mean(weights),
        "update_norms": {kind: _mean(values) for kind, values in norms.items()},
        "cosines": {kind: _mean(values) for kind, values in cosines.items()},
    }
    if lost := [record["lost"] for record in rounds if "lost" in record]:
        facts["lost"] = _mean(lost)
    return facts


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return fmean(found) if found else None
