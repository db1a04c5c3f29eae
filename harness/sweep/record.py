"""The record of a sweep: its cells, stages and execution settings, as read by status, retry, report and cancel."""

import sys
from argparse import ArgumentParser
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
    """Where a recorded sweep runs, and where its metrics are logged."""

    name: ClassVar[str] = "place"
    version: ClassVar[int] = 1
    cluster: Cluster
    tracker: TrackerSettings

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the part of a run's settings that the sweep record stores under ``place``."""
        return cls(cluster=settings.cluster, tracker=settings.tracker)


def sweep_id(cells: Sequence[Cell], title: str) -> str:
    """Return the id of a sweep: its title and a hash of its cells, so that a repeated sweep has the same id."""
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
    """Write the record of a sweep; an existing record's creation time and predictions are kept.

    Raises:
        StoreError: the store cannot be written.
    """
    # A damaged record is replaced: only the creation time and the first predictions are lost.
    readable = sweep in store.sweep_ids() and not record_problem(store, sweep)
    before = store.read_sweep(sweep) if readable else {}
    flags = _config_flags(sys.argv[1:])
    rates = {kind: cost.seconds / cost.known if cost.known else None for kind, cost in costs.items()}
    record = {
        "id": sweep,
        "title": settings.title,
        "created": before.get("created") or datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": redacted(sys.argv),
        "place": describe(ExecutionSettings.of(settings)),
        "targets": list(settings.targets),
        "attacker": {"space": settings.attacker.columns, "utility_loss": settings.attacker.utility_loss}
        if settings.attacker
        else None,
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
                **({"flags": flags} if flags else {}),
            }
            for cell in cells
        ],
        "skipped": [cell._asdict() for cell in skipped],
        "stages": {stage.key: describe_stage(stage) for stage in plan.stages},
    }
    store.write_sweep(sweep, record)


def _config_flags(arguments: Sequence[str]) -> list[str]:
    """Return those flags of a command line without which its overrides mean something else."""
    parser = ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd")
    given, _ = parser.parse_known_args(arguments)
    return [] if given.config_dir is None else ["--config-dir", given.config_dir]


def describe_stage(stage: Stage) -> dict[str, object]:
    """Return the properties of a stage that the report and the W&B sync read; they do not import stage classes."""
    settings = stage.recorded_settings()
    return {
        "kind": stage.name,
        "parents": [parent.key for parent in stage.parents],
        "trains": stage.trains,
        "parallel": stage.parallel,
        "attacked": any(ancestor.attacks for ancestor in lineage((stage,))),
        "settings": None if settings is None else dict(settings),
        **({"reported_shares": dict(stage.reported_shares)} if stage.reported_shares else {}),
    }


def store_of(root: Store, record: Mapping[str, Any]) -> Store:
    """Return the store with the classes that the sweep's configuration allows in specs."""
    return Store(root.root, allow=allowed(record.get("targets", ())))


def plan_of(store: Store, record: Mapping[str, Any]) -> Plan:
    """Rebuild the plan of a recorded sweep from stored specs.

    Raises:
        StoreError: a spec is missing, or yields a different key with the installed code.
    """
    parents = {parent for stage in record["stages"].values() for parent in stage["parents"]}
    return Plan.of(store.stage(key) for key in record["stages"] if key not in parents)


def execution_settings_of(record: Mapping[str, Any], changes: Mapping[str, object]) -> ExecutionSettings:
    """Rebuild the execution settings of a recorded sweep.

    Args:
        record: the sweep record.
        changes: overrides by dotted name, such as ``cluster.on_oom``.

    Raises:
        ConfigError: a name does not exist, or a value is invalid.
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
    settings = build(ExecutionSettings, data, allow=allowed(record.get("targets", ())))
    check_kinds(settings.cluster)
    return settings


def read_record(root: Store, name: str | None) -> dict[str, Any]:
    """Return the record of a sweep; of the latest if ``name`` is None.

    Raises:
        StoreError: there is no such sweep, or its record is of an earlier version.
    """
    sweep = resolve_sweep(root, name)
    remedy = "Run the sweep's command again: it rewrites the record and reuses stored stages."
    if why := record_problem(root, sweep):
        raise StoreError(f"{why} {remedy}")
    record = root.read_sweep(sweep)
    if not {"stages", "place"} <= record.keys():
        raise StoreError(f"The record of `{sweep}` is of an earlier version and does not list its stages. {remedy}")
    return record
