"""Reproduction targets: published numbers beside the rows that meet their conditions."""

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
    """Gives the settings of a stage by its key, flat, by dotted name."""

SCORES = ("hs", "fa")
MATCH, NEAR, OFF = "match", "near", "off"
"""A difference up to the tolerance, up to twice as much, and beyond."""
COLUMNS = ("target", "target_hs", "target_fa", "target_status", "target_source", "target_unstated")
"""What ``mark`` adds."""
_GROUP = {"source", "labels", "settings", "protocol", "tolerance", "unstated", "cells"}
_CELL = {"labels", "settings", "protocol", *SCORES}


@dataclass(frozen=True, kw_only=True)
class Target:
    """A published cell.

    Attributes:
        name: its group and its place in it, counted from 1.
        source: where the numbers were read.
        labels: what a row must be called.
        settings: what the stages of a row must be made of, by ``STAGE.DOTTED.NAME``.
        protocol: how a row must have been evaluated.
        scores: the published numbers, in percent.
        tolerance: up to which difference a score matches, in percentage points.
        unstated: what the source does not say.
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
        """Return how the measured scores compare, the worst of them; empty while one is missing."""
        worst = 0.0
        for score, published in self.scores.items():
            if math.isnan(measured[score]):
                return ""
            # Rounded, so that 68.3 is 3 points from 65.3 in floating point too.
            worst = max(worst, round(abs(measured[score] - published), 6) / self.tolerance[score])
        return MATCH if worst <= 1 else NEAR if worst <= 2 else OFF


def read(path: Path | None = None) -> list[Target]:
    """Return the targets of a file; those of the house by default.

    Raises:
        ConfigError: the file is not one of targets.
    """
    path = path or _house_file()
    content = yaml.safe_load(path.read_text("utf-8"))
    problems: list[str] = []
    targets: list[Target] = []
    for group, fields in content.items():
        unknown = set(fields) - _GROUP | {name for cell in fields.get("cells", ()) for name in set(cell) - _CELL}
        lacking = {"source", "tolerance", "cells"} - set(fields)
        if unknown or lacking:
            what = [f"does not know {', '.join(sorted(unknown))}"] * bool(unknown)
            what += [f"lacks {', '.join(sorted(lacking))}"] * bool(lacking)
            problems.append(f"`{group}`: {'; '.join(what)}; expected {', '.join(sorted(_GROUP))}. Set in `{path}`")
            continue
        targets += [_target(f"{group}_{place}", fields, cell) for place, cell in enumerate(fields["cells"], start=1)]
    if problems:
        raise ConfigError(problems)
    return targets


def mark(rows: DataFrame, targets: Sequence[Target], settings: Settings, *, by: Sequence[str] = ()) -> DataFrame:
    """Return the rows with the target that each meets, and how the mean over their seeds compares.

    The columns of ``COLUMNS`` are added: the target's name, its numbers, ``match``, ``near`` or ``off`` (empty while a
    score is missing), its source, and what the source does not say; all empty where no target's conditions are met.

    Args:
        rows: what ``load_rows`` returned.
        targets: what ``read`` returned.
        settings: gives a stage's settings by its key.
        by: columns that tell rows apart beside the seed: rows in which one differs are not averaged.
    """
    settings = cache(settings)
    # A missing whole number is None here: pandas' own compares with nothing.
    plain = rows.astype(object).where(rows.notna(), None)
    met = [next((target for target in targets if _meets(row, target, settings)), None) for _, row in plain.iterrows()]
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
    laid = {part: {**group.get(part, {}), **cell.get(part, {})} for part in ("labels", "settings", "protocol")}
    return Target(
        name=name,
        source=group["source"],
        scores={score: float(cell[score]) for score in SCORES if score in cell},
        tolerance={score: float(value) for score, value in group["tolerance"].items()},
        unstated=group.get("unstated", ""),
        **laid,
    )


def _meets(row: Any, target: Target, settings: Settings) -> bool:
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


def _house_file() -> Path:
    package = Path(__file__).parents[2]
    shipped = package / "data" / "targets.yaml"
    return shipped if shipped.is_file() else package.parent / "data" / "targets.yaml"
