"""The record of a sweep: what was asked for, so that status, retry, report and cancel have something to point at."""

import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar, Self, final

from harness.config.build import Settings, Skipped, check_kinds
from harness.engine.build import allowed, build
from harness.engine.estimate import Cost
from harness.engine.gc import record_problem
from harness.engine.identity import key_of
from harness.engine.lookup import resolve_sweep
from harness.engine.plan import Plan
from harness.engine.provenance import redacted
from harness.engine.spec import describe
from harness.engine.stage import Stage, lineage
from harness.engine.store import Store
from harness.engine.tracker import TrackerSettings
from harness.errors import ConfigError, Problem, StoreError
from harness.execution.cluster import Cluster
from harness.experiment.cell import Cell


@final
@dataclass(frozen=True, kw_only=True)
class ExecutionSettings:
    """Where a recorded sweep runs, and where its curves go."""

    name: ClassVar[str] = "place"
    version: ClassVar[int] = 1
    cluster: Cluster
    tracker: TrackerSettings

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the part of a run's settings that the record of its sweep keeps under ``place``."""
        return cls(cluster=settings.cluster, tracker=settings.tracker)


def sweep_id(cells: Sequence[Cell], title: str) -> str:
    """Return the id of a sweep. The same cells have the same id, so a repeated sweep is the same sweep."""
    return f"{title}-{key_of(sorted(cell.identity.result for cell in cells))[:8]}"


def record_sweep(
    store: Store,
    sweep: str,
    *,
    cells: Sequence[Cell],
    skipped: Sequence[Skipped] = (),
    plan: Plan,
    costs: Mapping[str, Cost],
    settings: Settings,
) -> None:
    """Write the record of a sweep. When it ran first stays, and what was predicted then.

    Raises:
        StoreError: the store cannot be written.
    """
    # A record that is damaged is written anew: the command says all but when it was first given.
    readable = sweep in store.sweep_ids() and not record_problem(store, sweep)
    before = store.read_sweep(sweep) if readable else {}
    rates = {kind: cost.seconds / cost.known if cost.known else None for kind, cost in costs.items()}
    record = {
        "id": sweep,
        "title": settings.title,
        "created": before.get("created") or datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": redacted(sys.argv),
        "place": describe(ExecutionSettings.of(settings)),
        "targets": list(settings.targets),
        "predicted": {
            **rates,
            **{kind: rate for kind, rate in before.get("predicted", {}).items() if rate is not None},
        },
        "cells": [
            {
                "labels": dict(cell.labels),
                "swept": dict(cell.swept),
                "protocol": dict(cell.protocol),
                "keys": cell.keys,
                "overrides": redacted(cell.overrides),
            }
            for cell in cells
        ],
        "skipped": [cell._asdict() for cell in skipped],
        "stages": {stage.key: described(stage) for stage in plan.stages},
    }
    store.write_sweep(sweep, record)


def described(stage: Stage) -> dict[str, object]:
    """Return what the report and W&B need of a stage, which know no class of one."""
    settings = stage.recorded_settings()
    return {
        "kind": stage.name,
        "parents": [parent.key for parent in stage.parents],
        "trains": stage.trains,
        "parallel": stage.parallel,
        "attacked": any(ancestor.attacks for ancestor in lineage((stage,))),
        "settings": None if settings is None else dict(settings),
    }


def store_of(root: Store, record: Mapping[str, Any]) -> Store:
    """Return the store as the sweep sees it: with the classes that its configuration allowed."""
    return Store(root.root, allow=allowed(record.get("targets", ())))


def plan_of(store: Store, record: Mapping[str, Any]) -> Plan:
    """Rebuild the plan of a recorded sweep from frozen specs.

    Raises:
        StoreError: a spec is missing, or the installed code makes another key of it.
    """
    parents = {parent for stage in record["stages"].values() for parent in stage["parents"]}
    return Plan.of(store.stage(key) for key in record["stages"] if key not in parents)


def place_of(record: Mapping[str, Any], changes: Mapping[str, object]) -> ExecutionSettings:
    """Rebuild where a recorded sweep runs.

    Args:
        record: the sweep's.
        changes: other values, by dotted name, as ``cluster.on_oom``.

    Raises:
        ConfigError: a name does not exist, or a value is wrong.
    """
    data: dict[str, Any] = {key: deepcopy(value) for key, value in record["place"].items() if not key.startswith("_")}
    for name, value in changes.items():
        *path, last = name.split(".")
        node = data
        for part in path:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError([Problem(name, f"`{part}` is a single value and has no settings of its own")])
        node[last] = value
    place = build(ExecutionSettings, data, allow=allowed(record.get("targets", ())))
    check_kinds(place.cluster)
    return place


def recorded(root: Store, name: str | None) -> dict[str, Any]:
    """Return the record of a sweep; the latest one if none is named.

    Raises:
        StoreError: there is no such sweep, or its record is of an earlier version.
    """
    sweep = resolve_sweep(root, name)
    again = "Run the command of the sweep again, which writes it anew; what is stored stays."
    if why := record_problem(root, sweep):
        raise StoreError(f"{why} {again}")
    record = root.read_sweep(sweep)
    if not {"stages", "place"} <= record.keys():
        raise StoreError(f"The record of `{sweep}` is of an earlier version and does not name its stages. {again}")
    return record
