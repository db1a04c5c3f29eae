"""Reproduction targets: published scores, matched with the rows that meet their conditions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from harness.errors import ConfigError

if TYPE_CHECKING:
    from pandas import DataFrame

    Settings = Callable[[str], Mapping[str, object]]
    """Returns the settings of a stage by its key, flattened to dotted names."""

SCORES = ("hs", "fa")
MATCH, NEAR, OFF = "match", "near", "off"
"""Status of a difference up to the tolerance, up to twice the tolerance, and above."""
COLUMNS = ("target", "target_hs", "target_fa", "target_status", "target_source", "target_unstated")
"""Columns that ``with_targets`` adds."""
_GROUP = {"source", "labels", "settings", "protocol", "tolerance", "unstated", "cells"}
_CELL = {"labels", "settings", "protocol", *SCORES}


@dataclass(frozen=True, kw_only=True)
class Target:
    """A published cell.

    Attributes:
        name: its group and its index in the group, counted from 1.
        source: publication and table of the scores.
        labels: labels that a row must have.
        settings: settings that the stages of a row must have, by ``STAGE.DOTTED.NAME``.
        protocol: evaluation protocol that a row must have.
        scores: the published scores, in percent.
        tolerance: maximum difference of a match, by score, in percentage points.
        unstated: conditions that the source does not state.
    """

    name: str
    source: str
    labels: Mapping[str, object]
    settings: Mapping[str, object]
    protocol: Mapping[str, object]
    scores: Mapping[str, float]
    tolerance: Mapping[str, float]
    unstated: str = ""

    def status(self, measured: Mapping[str, float]) -> str:
        """Return the worst status of the measured scores; empty if one is missing."""
        worst = 0.0
        for score, published in self.scores.items():
            if math.isnan(measured[score]):
                return ""
            # Rounded because 68.3 - 65.3 > 3 in floating point.
            worst = max(worst, round(abs(measured[score] - published), 6) / self.tolerance[score])
        return MATCH if worst <= 1 else NEAR if worst <= 2 else OFF


def read_targets(path: Path | None = None) -> list[Target]:
    """Return the targets of a file; by default the shipped ones.

    Raises:
        ConfigError: the file has unknown or missing fields.
    """
    path = path or _default_path()
    content = yaml.safe_load(path.read_text("utf-8"))
    problems: list[str] = []
    targets: list[Target] = []
    for group, fields in content.items():
        unknown = set(fields) - _GROUP | {name for cell in fields.get("cells", ()) for name in set(cell) - _CELL}
        lacking = {"source", "tolerance", "cells"} - set(fields)
        if unknown or lacking:
            wrong = [f"unknown: {', '.join(sorted(unknown))}"] * bool(unknown)
            wrong += [f"missing: {', '.join(sorted(lacking))}"] * bool(lacking)
            problems.append(f"`{group}`: {'; '.join(wrong)}; expected {', '.join(sorted(_GROUP))}. Set in `{path}`")
            continue
        targets += [_target(f"{group}_{index}", fields, cell) for index, cell in enumerate(fields["cells"], start=1)]
    if problems:
        raise ConfigError(problems)
    return targets


def with_targets(
    rows: DataFrame, targets: Sequence[Target], settings: Settings, *, by: Sequence[str] = ()
) -> DataFrame:
    """Return the rows with the target that each matches, and the status of the mean over their seeds.

    Adds ``COLUMNS``: the target's name, its scores, ``match``, ``near`` or ``off`` (empty while a score is missing),
    its source, and what the source does not state; all empty if a row meets the conditions of no target.

    Args:
        rows: as returned by ``load_rows``.
        targets: as returned by ``read_targets``.
        settings: returns a stage's settings by its key.
        by: columns that, with the seed, identify a row; rows that differ in one of them are not averaged.
    """
    settings = cache(settings)
    # Missing integers become None, because comparing with pandas.NA yields NA.
    plain = rows.astype(object).where(rows.notna(), None)
    met = [next((target for target in targets if _matches(row, target, settings)), None) for _, row in plain.iterrows()]
    marked = rows.assign(
        target=[target.name if target else "" for target in met],
        target_hs=[target.scores.get("hs", float("nan")) if target else float("nan") for target in met],
        target_fa=[target.scores.get("fa", float("nan")) if target else float("nan") for target in met],
        target_source=[target.source if target else "" for target in met],
        target_unstated=[target.unstated if target else "" for target in met],
    )
    by_name = {target.name: target for target in met if target}
    status = dict.fromkeys(marked.index, "")
    for _, group in marked[marked["target"] != ""].groupby(["target", *by], dropna=False):
        means = {score: float(group[score].mean()) for score in SCORES}
        status |= dict.fromkeys(group.index, by_name[group["target"].iloc[0]].status(means))
    marked["target_status"] = list(status.values())
    return marked[[*rows.columns, *COLUMNS]]


def _target(name: str, group: Mapping[str, Any], cell: Mapping[str, Any]) -> Target:
    merged = {part: {**group.get(part, {}), **cell.get(part, {})} for part in ("labels", "settings", "protocol")}
    return Target(
        name=name,
        source=group["source"],
        scores={score: float(cell[score]) for score in SCORES if score in cell},
        tolerance={score: float(value) for score, value in group["tolerance"].items()},
        unstated=group.get("unstated", ""),
        **merged,
    )


def _matches(row: Any, target: Target, settings: Settings) -> bool:
    if any(row.get(name) != value for name, value in target.labels.items()):
        return False
    if any(row.get(f"protocol.{name}") != value for name, value in target.protocol.items()):
        return False
    for name, value in target.settings.items():
        stage, _, setting = name.partition(".")
        key = row.get(f"key.{stage}")
        if not isinstance(key, str) or settings(key).get(setting) != value:
            return False
    return True


def _default_path() -> Path:
    package = Path(__file__).parents[2]
    shipped = package / "data" / "targets.yaml"
    return shipped if shipped.is_file() else package.parent / "data" / "targets.yaml"
