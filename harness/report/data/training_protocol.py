"""The training protocol of a cell and its decoding, by the names of settings in the configuration."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from harness.report.data.stage_records import StageRecord

PROCESSES = ".processes"
"""Suffix of the name of a stage's world size."""
PASSES = ".passes"
"""Suffix of the name of a training's numeric switches."""
CODE = ".code"
"""Suffix of the import path of an external class: the digest of its source files when a stage ran."""
DECODED = ("decoding.path", "decoding.arithmetic")
"""Decoding facts of a cell's stages; differing values of several stages are joined by commas."""
_BATCHING = "micro_batch_size"
"""Part of the budget in stages of earlier versions; ignored, because it does not change the effective batch."""


def training_protocol_of(keys: Mapping[str, str | None], stage_records: Mapping[str, StageRecord]) -> dict[str, Any]:
    """Return how a cell was trained and decoded: budgets, adapter protocol, world sizes, numeric switches, decoding.

    And the code of the external classes that took part.

    Settings that distinguish defenses (the methods and their data) are not included.

    Args:
        keys: the keys of the cell's stages, by role.
        stage_records: the stages of the sweep, by key; a stage without a stored spec contributes nothing, one without a
            manifest nothing that only finished stages have.
    """
    stages = {part: stage_records[key] for part, key in keys.items() if key is not None and key in stage_records}
    found = {name: value for entry in stages.values() for name, value in _settings(entry)}
    for name in DECODED:
        facts = {entry.decoding.get(name.rpartition(".")[2]) for entry in stages.values()} - {None}
        if facts:
            found[name] = ", ".join(sorted(map(str, facts)))
    code: defaultdict[str, set[str]] = defaultdict(set)
    for entry in stages.values():
        for path, found_class in entry.provenance.get("classes", {}).items():
            code[path + CODE].add(found_class["code"])
    return found | {name: ", ".join(sorted(digests)) for name, digests in code.items()}


def known_late(name: str) -> bool:
    """Return whether a setting is known for finished stages only."""
    return name.endswith((PROCESSES, PASSES, CODE)) or name in DECODED


def assign_protocols(
    protocols: Sequence[Mapping[str, Any]], blocks: Sequence[Hashable], conditions: Sequence[Hashable]
) -> list[Mapping[str, Any]]:
    """Return the protocol to which each cell is assigned.

    World size and decoding of an unfinished stage are unknown. Such a cell is assigned to a protocol that agrees with
    its own in all settings that both have: the most common one in its condition, then in its block.

    Args:
        protocols: the protocol of each cell, as far as it is known.
        blocks: identifies cells whose protocols are compared.
        conditions: identifies cells that would be averaged if their protocols were equal.
    """
    known: defaultdict[Hashable, list[dict[str, Any]]] = defaultdict(list)
    votes: Counter[Hashable] = Counter()
    assigned = [0] * len(protocols)
    late = [sum(map(known_late, protocol)) for protocol in protocols]
    for index in sorted(range(len(protocols)), key=lambda index: -late[index]):
        block, condition, protocol = blocks[index], conditions[index], protocols[index]
        candidates = [number for number, other in enumerate(known[block]) if _agree(protocol, other)]
        if not candidates:
            candidates = [len(known[block])]
            known[block].append({})
        chosen = max(candidates, key=lambda number: (votes[block, condition, number], votes[block, number]))
        votes.update([(block, condition, chosen), (block, chosen)])
        known[block][chosen] |= protocol
        assigned[index] = chosen
    return [known[block][chosen] for block, chosen in zip(blocks, assigned, strict=True)]


def _agree(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Return whether two protocols are equal, apart from settings known late that one of them lacks."""
    return all(
        first[name] == second[name] if name in first and name in second else known_late(name)
        for name in first.keys() | second
    )


def _settings(entry: StageRecord) -> Iterator[tuple[str, Any]]:
    for name, path in (entry.settings or {}).items():
        found: Any = entry.spec
        for field in path.split("."):
            found = found.get(field) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping):
            # As in a key, null is what a setting is for stages that were stored before it existed.
            given = (field for field, value in found.items() if value is not None)
            shown = (field for field in given if not field.startswith("_") and field != _BATCHING)
            yield from ((f"{name}.{field}", found[field]) for field in shown)
        elif found is not None:
            yield name, found
    if entry.finished and entry.trains and entry.parallel:
        yield entry.kind + PROCESSES, entry.processes
        yield entry.kind + PASSES, entry.passes
