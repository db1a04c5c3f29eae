"""The training protocol of a cell, by the names of its settings in the configuration."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from harness.report.data.stage_records import StageRecord

PROCESSES = ".processes"
"""Suffix of the name of a stage's world size, which is known for finished stages only."""
_BATCHING = "micro_batch_size"
"""Part of the budget in stages of earlier versions; ignored, because it does not change the effective batch."""


def training_protocol_of(keys: Mapping[str, str | None], stage_records: Mapping[str, StageRecord]) -> dict[str, Any]:
    """Return budgets, adapter protocol, effective batch, data compat and world size of a cell.

    Settings that distinguish defenses (the methods and their data) are not included.

    Args:
        keys: the keys of the cell's stages, by role.
        stage_records: the stages of the sweep, by key; a stage without a stored spec contributes nothing, one without a
            manifest no world size.
    """
    stages = {part: stage_records[key] for part, key in keys.items() if key is not None and key in stage_records}
    return {name: value for part, entry in stages.items() for name, value in _settings(part, entry)}


def assign_protocols(
    protocols: Sequence[Mapping[str, Any]], blocks: Sequence[Hashable], conditions: Sequence[Hashable]
) -> list[Mapping[str, Any]]:
    """Return the protocol to which each cell is assigned.

    The world size of an unfinished stage is unknown. Such a cell is assigned to a protocol that agrees with its own in
    all known settings: the most common one in its condition, then in its block.

    Args:
        protocols: the protocol of each cell, as far as it is known.
        blocks: identifies cells whose protocols are compared.
        conditions: identifies cells that would be averaged if their protocols were equal.
    """
    assigned = list(protocols)
    known: defaultdict[Hashable, list[Mapping[str, Any]]] = defaultdict(list)
    votes: Counter[Hashable] = Counter()
    finished = [sum(name.endswith(PROCESSES) for name in protocol) for protocol in protocols]
    for index in sorted(range(len(protocols)), key=lambda index: -finished[index]):
        block, condition, protocol = blocks[index], conditions[index], protocols[index]
        candidates = [number for number, other in enumerate(known[block]) if _agrees(protocol, other)]
        if not candidates:
            candidates = [len(known[block])]
            known[block].append(protocol)
        chosen = max(candidates, key=lambda number: (votes[block, condition, number], votes[block, number]))
        votes.update([(block, condition, chosen), (block, chosen)])
        assigned[index] = known[block][chosen]
    return assigned


def _agrees(protocol: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two protocols are equal except for world sizes that the first lacks."""
    return all(name in other and other[name] == found for name, found in protocol.items()) and all(
        name.endswith(PROCESSES) for name in other if name not in protocol
    )


def _settings(part: str, entry: StageRecord) -> Iterator[tuple[str, Any]]:
    for name, path in (entry.settings or {}).items():
        found: Any = entry.spec
        for field in path.split("."):
            found = found.get(field) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping):
            shown = (field for field in found if not field.startswith("_") and field != _BATCHING)
            yield from ((f"{name}.{field}", found[field]) for field in shown)
        elif found is not None:
            yield name, found
    if entry.finished and entry.trains and entry.parallel:
        yield part + PROCESSES, entry.processes
