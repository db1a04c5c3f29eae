"""The setup of a cell: how it was trained, under the names that a configuration gives to these settings."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from harness.report.data.stage_records import StageRecord

PROCESSES = ".processes"
"""How the name of a world size ends. It is known of finished stages only."""
_BATCHING = "micro_batch_size"
"""Stages that were stored by earlier versions have it in their budget; how a batch is cut is no difference."""


def setup_of(keys: Mapping[str, str | None], ledger: Mapping[str, StageRecord]) -> dict[str, Any]:
    """Return budgets, adapter protocol, effective batch, data compat and world size of a cell.

    What tells defenses from each other (the methods and their data) is not among it.

    Args:
        keys: of the cell's stages, by the part they play.
        ledger: of the sweep; a stage whose spec is not stored adds nothing, one without a manifest no world size.
    """
    stages = {part: ledger[key] for part, key in keys.items() if key is not None and key in ledger}
    return {name: value for part, entry in stages.items() for name, value in _settings(part, entry)}


def joined(
    protocols: Sequence[Mapping[str, Any]], blocks: Sequence[Hashable], lines: Sequence[Hashable]
) -> list[Mapping[str, Any]]:
    """Return the protocol under which each cell is counted.

    On how many processes an unfinished stage will run nobody knows. Such a cell is counted under a protocol that its
    own agrees with in everything that is known: the one that most cells of its line have, then of its block.

    Args:
        protocols: of the cells.
        blocks: what says which cells may share a protocol.
        lines: what says which cells would be one line.
    """
    counted = list(protocols)
    known: defaultdict[Hashable, list[Mapping[str, Any]]] = defaultdict(list)
    votes: Counter[Hashable] = Counter()
    certain = [sum(name.endswith(PROCESSES) for name in protocol) for protocol in protocols]
    for index in sorted(range(len(protocols)), key=lambda index: -certain[index]):
        block, line, mine = blocks[index], lines[index], protocols[index]
        alike = [place for place, other in enumerate(known[block]) if _agree(mine, other)]
        if not alike:
            alike = [len(known[block])]
            known[block].append(mine)
        place = max(alike, key=lambda place: (votes[block, line, place], votes[block, place]))
        votes.update([(block, line, place), (block, place)])
        counted[index] = known[block][place]
    return counted


def _agree(mine: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(name in other and other[name] == found for name, found in mine.items()) and all(
        name.endswith(PROCESSES) for name in other if name not in mine
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
