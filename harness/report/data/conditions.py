"""Conditions: the units of averaging. The cells of a condition differ only in their seed; they are its replicates.

This module alone decides what distinguishes conditions, for the report and for W&B: a new axis (another slot, another
stage) has to be added here only. The settings of a preset, an experiment or a corpus do not appear among the overrides,
so two of them under one label could be averaged as if they were seeds of one condition; such cells are distinguished by
the specs of their stages.
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
from harness.report.data.training_protocol import assign_protocols

if TYPE_CHECKING:
    from pandas import DataFrame

BLOCK = ("task", "model")
"""Labels within which protocols are compared."""
SITUATION = ("ratio", *BLOCK, "attack")
"""Labels of the setting in which a defense is evaluated."""
RATIO_NAMES = ("attack_ratio", "attack.ratio")
"""Swept names that only repeat the ratio."""
STAGES = "stages"
"""Column that distinguishes cells whose specs do not: the key of the first stage that they do not share."""
_DATA = ("refusal", "harmful")


class Condition(NamedTuple):
    """Cells that differ only in their seed.

    Attributes:
        names: labels without the seed, swept values and ``protocol``.
        cells: their tidy rows, by column.
    """

    names: Mapping[str, Any]
    cells: Sequence[Mapping[str, Any]]

    @property
    def situation(self) -> Hashable:
        """The names that it shares with its baseline: all but the defense, its settings and the protocol."""
        return tuple(
            (name, str(found))
            for name, found in self.names.items()
            if name not in ("defense", "protocol", STAGES) and not name.startswith("defense.")
        )


def condition_columns(rows: DataFrame) -> list[str]:
    """Return the columns that identify a condition: those that identify a cell, without the seed."""
    return [*_names(swept_in(rows)), "protocol"]


def conditions_of(rows: DataFrame) -> list[Condition]:
    """Return the conditions of a sweep, in the order of its cells; duplicate cells count once.

    Args:
        rows: as returned by ``load_rows``.
    """
    by, swept = condition_columns(rows), swept_in(rows)
    keys = [name for name in rows.columns if name.startswith(KEY_PREFIX)]
    conditions: dict[tuple[str, ...], Condition] = {}
    seen = set()
    for cell in records(rows):
        labels, others, stages = ({name: cell[name] for name in names} for names in (LABELS, swept, keys))
        identity = CellIdentity(labels=labels, swept=others, keys=stages), str(cell["protocol"])
        if identity not in seen:
            seen.add(identity)
            condition = conditions.setdefault(condition_key(cell, by), Condition({name: cell[name] for name in by}, []))
            assert isinstance(condition.cells, list)
            condition.cells.append(cell)
    return list(conditions.values())


def condition_key(row: Mapping[str, Any], by: Iterable[str]) -> tuple[str, ...]:
    """Return the values of the columns that identify a condition; equal for rows of one condition."""
    return tuple(str(row.get(name)) for name in by)


def differing(cells: Sequence[Mapping[str, Any]], names: Iterable[str] | None = None) -> list[str]:
    """Return the names of values in which cells differ; a missing value counts as a value.

    Args:
        cells: the values of each cell, by name.
        names: the names to compare, in the order of the result; None compares all.
    """
    compared = dict.fromkeys(name for cell in cells for name in cell) if names is None else dict.fromkeys(names)
    return [name for name in compared if len({str(cell.get(name)) for cell in cells}) > 1]


def repeats(texts: Sequence[str], others: Sequence[str]) -> bool:
    """Return whether two lists of values partition cells identically."""
    return len(set(texts)) == len(set(others)) == len(set(zip(texts, others, strict=True)))


def varying(means: DataFrame, rows: DataFrame) -> list[str]:
    """Return the swept values in which conditions differ, without those that merely repeat a label.

    Conditions of different tasks, models and attacks stand in different tables, so there a value that changes along
    with one of these says nothing more. Ratios are the columns of one table: a setting that changes along with them,
    because sweeps with different settings are reported together, is none of theirs.
    """
    conditions = records(means)
    texts = {label: [str(each[label]) for each in conditions] for label in SITUATION}
    return [
        name
        for name in differing(conditions, swept_in(rows))
        if not any(
            repeats([str(each[name]) for each in conditions], others)
            for label, others in texts.items()
            if label != "ratio" or name in RATIO_NAMES
        )
    ]


def condition_name(names: Mapping[str, Any], swept: Iterable[str]) -> str:
    """Return the name of a condition in a single column, such as ``booster (lamb 5, alpha 0.1)``."""
    short = short_names(swept)
    settings = [f"{short[name]} {value(names[name])}" for name in short if value(names[name]) != "-"]
    return str(names["defense"]) + (f" ({', '.join(settings)})" if settings else "")


def short_names(swept: Iterable[str]) -> dict[str, str]:
    """Return the shortest unambiguous suffix of each dotted name: ``lamb``, or ``align.rho`` if there are two rhos."""
    parts = {name: name.split(".") for name in swept}
    ends = Counter(".".join(found[start:]) for found in parts.values() for start in range(len(found)))
    return {
        name: next((end for i in range(1, len(found) + 1) if ends[end := ".".join(found[-i:])] == 1), name)
        for name, found in parts.items()
    }


def distinguishing_values(
    cells: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    swept: Collection[str],
    stage_records: Mapping[str, StageRecord],
) -> list[dict[str, Any]]:
    """Return, for each cell, its protocol hash and the settings that distinguish it from cells with the same names.

    Args:
        cells: the cells of the sweep record.
        rows: the columns known so far of each cell.
        swept: the columns of swept values.
        stage_records: the stages of the sweep, by key.
    """
    names = [condition_key(row, _names(swept)) for row in rows]
    own = [
        {name.removeprefix(PROTOCOL_PREFIX): row[name] for name in row if name.startswith(PROTOCOL_PREFIX)}
        for row in rows
    ]
    counted = assign_protocols(own, [condition_key(row, BLOCK) for row in rows], names)
    protocols = [key_of(protocol) for protocol in counted]
    conditions = list(zip(names, protocols, strict=True))
    more = _implicit_differences(
        [cell["keys"] for cell in cells], conditions, [row["seed"] for row in rows], stage_records
    )
    return [{**found, "protocol": protocol} for found, protocol in zip(more, protocols, strict=True)]


def _names(swept: Iterable[str]) -> list[str]:
    return [*(name for name in LABELS if name != "seed"), *swept]


def _implicit_differences(
    keys: Sequence[Mapping[str, str | None]],
    conditions: Sequence[Hashable],
    seeds: Sequence[object],
    stage_records: Mapping[str, StageRecord],
) -> list[dict[str, Any]]:
    """Return, for each cell, the settings that distinguish it and that no label or override states; mostly none.

    These are settings in which cells of one condition and one seed differ, so none that depends on the seed.

    Args:
        keys: the keys of each cell's stages, by role.
        conditions: identifies the condition of each cell; cells with equal values would be averaged.
        seeds: the seed of each cell.
        stage_records: the stages of the sweep, by key.
    """

    @cache
    def stage_settings(part: str, key: str) -> dict[str, Any]:
        return _settings(part, stage_records[key]) if key in stage_records else {}

    def settings(index: int) -> dict[str, Any]:
        by_stage = [stage_settings(part, key) for part, key in keys[index].items() if key]
        return {name: found for settings in by_stage for name, found in settings.items()}

    cells: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index, condition in enumerate(conditions):
        cells[condition].append(index)
    apart: dict[str, None] = {}
    by_key: dict[int, str] = {}
    for members in cells.values():
        copies = [found for found in _by_seed(members, seeds).values() if len({_chain_id(keys[i]) for i in found}) > 1]
        names = dict.fromkeys(name for found in copies for name in differing([settings(i) for i in found]))
        apart |= names
        left: defaultdict[Hashable, set[Hashable]] = defaultdict(set)
        for index in (index for found in copies for index in found):
            left[seeds[index], condition_key(settings(index), names)].add(_chain_id(keys[index]))
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


def _chain_id(keys: Mapping[str, str | None]) -> Hashable:
    return tuple(sorted((part, key or "") for part, key in keys.items()))


def _settings(part: str, stage: StageRecord) -> dict[str, Any]:
    """Return the settings of a stage by their names in the configuration, without its seed and its parents."""
    return {
        _config_name(part, name, stage): label_of(str(found)) if name.endswith("_target_") else found
        for name, found in flatten(stage.spec).items()
        if name not in ("seed", "_target_") and not name.endswith("_stage_")
    }


def _config_name(part: str, name: str, stage: StageRecord) -> str:
    field, _, rest = name.removesuffix("._target_").partition(".")
    if field == "method":
        return f"defense.{part}.{rest}" if rest else f"defense.{part}"
    if field in _DATA and stage.trains and field not in stage.own_data:
        return f"defense.{part}.{field}.{rest}"
    return f"{part}.{field}.{rest}" if rest else f"{part}.{field}"
