"""Conditions: what is averaged. A condition's cells differ in nothing but their seed; they are its replicates.

Everything that tells conditions apart is decided here, for the report and for W&B: an axis that is new (another slot,
another stage) is taught in this module or nowhere. A preset, an experiment or a corpus is chosen by its name, and what
it sets is in no override. Two such choices under one label would be averaged as if they were seeds of one condition;
the specs of their stages tell in what they differ.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.engine.cells import CellIdentity
from harness.engine.classes import label_of
from harness.engine.identity import flatten, key_of
from harness.report.data.columns import KEY_PREFIX, LABELS, PROTOCOL_PREFIX, records, swept_in, value
from harness.report.data.stage_records import StageRecord
from harness.report.data.training_protocol import joined

if TYPE_CHECKING:
    from pandas import DataFrame

BLOCK = ("task", "model")
"""The labels of cells that may share a protocol."""
SITUATION = ("ratio", *BLOCK, "attack")
"""The labels under which a defense with its settings is tried."""
STAGES = "stages"
"""The setting that tells cells apart where no spec does: the key of the first stage that they do not share."""
_DATA = ("refusal", "harmful")


class Condition(NamedTuple):
    """Cells that differ in nothing but their seed.

    Attributes:
        names: labels without the seed, swept values and ``protocol``.
        cells: their tidy rows, by column.
    """

    names: Mapping[str, Any]
    cells: Sequence[Mapping[str, Any]]

    @property
    def situation(self) -> Hashable:
        """What it has in common with its baseline: everything but the defense, its settings and the protocol."""
        return tuple(
            (name, str(found))
            for name, found in self.names.items()
            if name not in ("defense", "protocol", STAGES) and not name.startswith("defense.")
        )


def telling(rows: DataFrame) -> list[str]:
    """Return the columns that tell one condition from another: everything that names a cell but its seed."""
    return [*_names(swept_in(rows)), "protocol"]


def conditions_of(rows: DataFrame) -> list[Condition]:
    """Return the conditions of a sweep, in the order in which its cells come. A cell that is there twice counts once.

    Args:
        rows: what ``load_rows`` returned.
    """
    by, swept = telling(rows), swept_in(rows)
    keys = [name for name in rows.columns if name.startswith(KEY_PREFIX)]
    conditions: dict[tuple[str, ...], Condition] = {}
    seen = set()
    for cell in records(rows):
        labels, others, stages = ({name: cell[name] for name in names} for names in (LABELS, swept, keys))
        identity = CellIdentity(labels=labels, swept=others, keys=stages), str(cell["protocol"])
        if identity not in seen:
            seen.add(identity)
            condition = conditions.setdefault(named(cell, by), Condition({name: cell[name] for name in by}, []))
            assert isinstance(condition.cells, list)
            condition.cells.append(cell)
    return list(conditions.values())


def named(row: Mapping[str, Any], by: Iterable[str]) -> tuple[str, ...]:
    """Return what a row has in the columns that tell conditions apart; equal for rows of one condition."""
    return tuple(str(row.get(name)) for name in by)


def differing(cells: Sequence[Mapping[str, Any]], names: Iterable[str] | None = None) -> list[str]:
    """Return the names under which not all cells have the same; what a cell lacks is a value as well.

    Args:
        cells: their values by name.
        names: that are asked for, in the order of the result; None asks for all.
    """
    asked = dict.fromkeys(name for cell in cells for name in cell) if names is None else dict.fromkeys(names)
    return [name for name in asked if len({str(cell.get(name)) for cell in cells}) > 1]


def repeats(texts: Sequence[str], others: Sequence[str]) -> bool:
    """Return whether values tell cells apart exactly as others do."""
    return len(set(texts)) == len(set(others)) == len(set(zip(texts, others, strict=True)))


def varying(means: DataFrame, rows: DataFrame) -> list[str]:
    """Return the swept values that tell conditions apart and do not only say again what a label says.

    ``attack_ratio`` only repeats the ratio, for example.
    """
    conditions = records(means)
    told = [[str(each[label]) for each in conditions] for label in SITUATION]
    return [
        name
        for name in differing(conditions, swept_in(rows))
        if not any(repeats([str(each[name]) for each in conditions], others) for others in told)
    ]


def condition_name(names: Mapping[str, Any], swept: Iterable[str]) -> str:
    """Return what a condition is called where there is one column for it, as ``booster (lamb 5, alpha 0.1)``."""
    short = short_names(swept)
    settings = [f"{short[name]} {value(names[name])}" for name in short if value(names[name]) != "-"]
    return str(names["defense"]) + (f" ({', '.join(settings)})" if settings else "")


def short_names(swept: Iterable[str]) -> dict[str, str]:
    """Return the end of every dotted name that no other one shares: ``lamb``, or ``align.rho`` beside another rho."""
    parts = {name: name.split(".") for name in swept}
    ends = Counter(".".join(found[start:]) for found in parts.values() for start in range(len(found)))
    return {
        name: next((end for i in range(1, len(found) + 1) if ends[end := ".".join(found[-i:])] == 1), name)
        for name, found in parts.items()
    }


def told_apart(
    cells: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    swept: Collection[str],
    ledger: Mapping[str, StageRecord],
) -> list[dict[str, Any]]:
    """Return the protocol that each cell is counted under, and what else tells it from cells of the same names.

    Args:
        cells: of the sweep, as recorded.
        rows: what is known of each, by column.
        swept: the columns of swept values.
        ledger: of the sweep.
    """
    names = [named(row, _names(swept)) for row in rows]
    own = [
        {name.removeprefix(PROTOCOL_PREFIX): row[name] for name in row if name.startswith(PROTOCOL_PREFIX)}
        for row in rows
    ]
    counted = joined(own, [named(row, BLOCK) for row in rows], names)
    protocols = [key_of(protocol) for protocol in counted]
    conditions = list(zip(names, protocols, strict=True))
    more = _implicit_differences([cell["keys"] for cell in cells], conditions, [row["seed"] for row in rows], ledger)
    return [{**found, "protocol": protocol} for found, protocol in zip(more, protocols, strict=True)]


def _names(swept: Iterable[str]) -> list[str]:
    return [*(name for name in LABELS if name != "seed"), *swept]


def _implicit_differences(
    keys: Sequence[Mapping[str, str | None]],
    conditions: Sequence[Hashable],
    seeds: Sequence[object],
    ledger: Mapping[str, StageRecord],
) -> list[dict[str, Any]]:
    """Return the settings to tell each cell by, beside what is known of it; mostly none.

    They are those in which cells of one condition and one seed differ, so none that follows the seed.

    Args:
        keys: of every cell's stages, by the part they play.
        conditions: what says which cells would be one condition.
        seeds: of the cells.
        ledger: of the sweep.
    """

    @cache
    def told(part: str, key: str) -> dict[str, Any]:
        return _settings(part, ledger[key]) if key in ledger else {}

    def settings(index: int) -> dict[str, Any]:
        return {name: found for part, key in keys[index].items() if key for name, found in told(part, key).items()}

    cells: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index, condition in enumerate(conditions):
        cells[condition].append(index)
    apart: dict[str, None] = {}
    by_key: dict[int, str] = {}
    for members in cells.values():
        copies = [found for found in _by_seed(members, seeds).values() if len({_of(keys[i]) for i in found}) > 1]
        names = dict.fromkeys(name for found in copies for name in differing([settings(i) for i in found]))
        apart |= names
        left: defaultdict[Hashable, set[Hashable]] = defaultdict(set)
        for index in (index for found in copies for index in found):
            left[seeds[index], named(settings(index), names)].add(_of(keys[index]))
        if any(len(found) > 1 for found in left.values()):
            part = differing([keys[index] for index in copies[0]])[0]
            by_key |= {index: str(keys[index].get(part)) for index in members}
    found = [{name: settings(index).get(name) for name in apart} for index in range(len(keys))]
    return [{**each, STAGES: by_key.get(index)} for index, each in enumerate(found)] if by_key else found


def _by_seed(members: Sequence[int], seeds: Sequence[object]) -> dict[str, list[int]]:
    found: defaultdict[str, list[int]] = defaultdict(list)
    for index in members:
        found[str(seeds[index])].append(index)
    return found


def _of(keys: Mapping[str, str | None]) -> Hashable:
    return tuple(sorted((part, key or "") for part, key in keys.items()))


def _settings(part: str, stage: StageRecord) -> dict[str, Any]:
    """Return the settings of a stage without its seed and its parents, under the names of a configuration."""
    return {
        _named(part, name, stage): label_of(str(found)) if name.endswith("_target_") else found
        for name, found in flatten(stage.spec).items()
        if name not in ("seed", "_target_") and not name.endswith("_stage_")
    }


def _named(part: str, name: str, stage: StageRecord) -> str:
    field, _, rest = name.removesuffix("._target_").partition(".")
    if field == "method":
        return f"defense.{part}.{rest}" if rest else f"defense.{part}"
    if field in _DATA and stage.trains and field not in stage.own_data:
        return f"defense.{part}.{field}.{rest}"
    return f"{part}.{field}.{rest}" if rest else f"{part}.{field}"
