"""The setup of a cell: how it was trained and how it answered, under the names that a configuration gives to it."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from harness.report.data.stage_records import StageRecord

PROCESSES = ".processes"
"""How the name of a world size ends."""
PASSES = ".passes"
"""How the name of a training's numeric switches ends."""
DECODED = ("decoding.path", "decoding.arithmetic")
"""How answers were decoded: the facts of that name of a cell's stages, one after another where they differ."""
_BATCHING = "micro_batch_size"
"""Stages that were stored by earlier versions have it in their budget; how a batch is cut is no difference."""


def setup_of(keys: Mapping[str, str | None], ledger: Mapping[str, StageRecord]) -> dict[str, Any]:
    """Return how a cell was trained and decoded: budgets, adapter protocol, world sizes, numeric switches, decoding.

    What tells defenses from each other (the methods and their data) is not among it.

    Args:
        keys: of the cell's stages, by the part they play.
        ledger: of the sweep; a stage whose spec is not stored adds nothing, one without a manifest nothing that is
            known of finished stages only.
    """
    stages = {part: ledger[key] for part, key in keys.items() if key is not None and key in ledger}
    found = {name: value for part, entry in stages.items() for name, value in _settings(part, entry)}
    for name in DECODED:
        facts = {entry.decoding.get(name.rpartition(".")[2]) for entry in stages.values()} - {None}
        if facts:
            found[name] = ", ".join(sorted(map(str, facts)))
    return found


def known_late(name: str) -> bool:
    """Return whether a setting is known of finished stages only."""
    return name.endswith((PROCESSES, PASSES)) or name in DECODED


def joined(
    protocols: Sequence[Mapping[str, Any]], blocks: Sequence[Hashable], lines: Sequence[Hashable]
) -> list[Mapping[str, Any]]:
    """Return the protocol under which each cell is counted.

    On how many processes an unfinished stage will run, and how it will decode, nobody knows. Such a cell is counted
    under a protocol that its own agrees with in everything that is known of both: the one that most cells of its line
    have, then of its block.

    Args:
        protocols: of the cells.
        blocks: what says which cells may share a protocol.
        lines: what says which cells would be one line.
    """
    known: defaultdict[Hashable, list[dict[str, Any]]] = defaultdict(list)
    votes: Counter[Hashable] = Counter()
    places = [0] * len(protocols)
    certain = [sum(map(known_late, protocol)) for protocol in protocols]
    for index in sorted(range(len(protocols)), key=lambda index: -certain[index]):
        block, line, mine = blocks[index], lines[index], protocols[index]
        alike = [place for place, other in enumerate(known[block]) if _agree(mine, other)]
        if not alike:
            alike = [len(known[block])]
            known[block].append({})
        place = max(alike, key=lambda place: (votes[block, line, place], votes[block, place]))
        votes.update([(block, line, place), (block, place)])
        known[block][place] |= mine
        places[index] = place
    return [known[block][place] for block, place in zip(blocks, places, strict=True)]


def _agree(mine: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(
        mine[name] == other[name] if name in mine and name in other else known_late(name)
        for name in mine.keys() | other
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
        yield part + PASSES, entry.passes
