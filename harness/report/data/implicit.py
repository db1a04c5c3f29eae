"""Settings that tell cells apart though neither their labels nor a swept value says so.

A preset, an experiment or a corpus is chosen by its name, and what it sets is in no override. Two such choices under
one label would be averaged as if they were seeds of one line; the specs of their stages tell in what they differ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import Any

from harness.engine.classes import label_of
from harness.engine.identity import flatten
from harness.report.data.stage_records import StageRecord

STAGES = "stages"
"""The setting that tells cells apart where no spec does: the key of the first stage that they do not share."""
_DATA = ("refusal", "harmful")


def implicit_differences(
    keys: Sequence[Mapping[str, str | None]],
    lines: Sequence[Hashable],
    seeds: Sequence[object],
    ledger: Mapping[str, StageRecord],
) -> list[dict[str, Any]]:
    """Return the settings to tell each cell by, beside what is known of it; mostly none.

    They are those in which cells of one line and one seed differ, so none that follows the seed.

    Args:
        keys: of every cell's stages, by the part they play.
        lines: what says which cells would be one line.
        seeds: of the cells.
        ledger: of the sweep.
    """

    @cache
    def told(part: str, key: str) -> dict[str, Any]:
        return _settings(part, ledger[key].spec) if key in ledger else {}

    def settings(index: int) -> dict[str, Any]:
        return {name: found for part, key in keys[index].items() if key for name, found in told(part, key).items()}

    cells: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index, line in enumerate(lines):
        cells[line].append(index)
    differing: dict[str, None] = {}
    by_key: dict[int, str] = {}
    for members in cells.values():
        copies = [found for found in _by_seed(members, seeds).values() if len({_of(keys[i]) for i in found}) > 1]
        names = dict.fromkeys(name for found in copies for name in _differing([settings(i) for i in found]))
        differing |= names
        left: defaultdict[Hashable, set[Hashable]] = defaultdict(set)
        for index in (index for found in copies for index in found):
            left[seeds[index], tuple(str(settings(index).get(name)) for name in names)].add(_of(keys[index]))
        if any(len(found) > 1 for found in left.values()):
            part = next(iter(_differing([keys[index] for index in copies[0]])))
            by_key |= {index: str(keys[index].get(part)) for index in members}
    found = [{name: settings(index).get(name) for name in differing} for index in range(len(keys))]
    return [{**each, STAGES: by_key.get(index)} for index, each in enumerate(found)] if by_key else found


def _by_seed(members: Sequence[int], seeds: Sequence[object]) -> dict[str, list[int]]:
    found: defaultdict[str, list[int]] = defaultdict(list)
    for index in members:
        found[str(seeds[index])].append(index)
    return found


def _of(keys: Mapping[str, str | None]) -> Hashable:
    return tuple(sorted((part, key or "") for part, key in keys.items()))


def _differing(settings: Sequence[Mapping[str, Any]]) -> dict[str, None]:
    """Return the names under which not all have the same."""
    names = dict.fromkeys(name for each in settings for name in each)
    return {name: None for name in names if len({str(each.get(name)) for each in settings}) > 1}


def _settings(part: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a stage without its seed and its parents, under the names of a configuration."""
    return {
        _named(part, name): label_of(str(found)) if name.endswith("_target_") else found
        for name, found in flatten(spec).items()
        if name not in ("seed", "_target_") and not name.endswith("_stage_")
    }


def _named(part: str, name: str) -> str:
    field, _, rest = name.removesuffix("._target_").partition(".")
    if field == "method":
        return f"defense.{part}.{rest}" if rest else f"defense.{part}"
    if field in _DATA and (part, field) != ("align", "refusal") and part != "poison":
        return f"defense.{part}.{field}.{rest}"
    return f"{part}.{field}.{rest}" if rest else f"{part}.{field}"
