"""A sweep: override lists -> cells -> plan -> executor, and the record that says what was asked for."""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from harness.cluster import Cluster, Local
from harness.compose import Composer, Composition, composition_of
from harness.config import cells_of, settings_of
from harness.engine.executor import Event, Outcome
from harness.engine.identity import key_of
from harness.engine.plan import Count, Plan
from harness.engine.provenance import redacted
from harness.engine.spec import describe
from harness.engine.store import Store
from harness.errors import ConfigError, StagesFailed
from harness.experiment import Cell
from harness.mirror.companion import mirrored
from harness.objective import Objective
from harness.outside import fetchables
from harness.stages.grade import read_summary
from harness.tracking.jsonl import Jsonl
from harness.tracking.tracker import TrackerSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planned:
    """What a sweep asks for.

    Attributes:
        sweep: the sweep's id.
        cells: how many cells.
        counts: distinct stages by kind, and how many of them are stored.
    """

    sweep: str
    cells: int
    counts: Mapping[str, Count]
    store: Path


class Front(Protocol):
    """Whoever is told what happens: the command line, or a test."""

    def planned(self, planned: Planned) -> None:
        """The plan is made and checked; nothing has run."""
        ...

    def event(self, event: Event) -> None:
        """A stage changed its state."""
        ...

    def finished(self, planned: Planned, outcome: Outcome) -> None:
        """Nothing is left to run."""
        ...

    def mirrored(self, text: str) -> None:
        """The tracking server's mirror has something to say; may come from another thread."""
        ...


class Silent:
    """Tells nobody."""

    def planned(self, planned: Planned) -> None:
        """Nothing."""

    def event(self, event: Event) -> None:
        """Nothing."""

    def finished(self, planned: Planned, outcome: Outcome) -> None:
        """Nothing."""

    def mirrored(self, text: str) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Session:
    """What Hydra's plugins cannot be given as an argument: the verb, and whom to tell."""

    front: Front
    verb: Literal["run", "plan"] = "run"


_session: ContextVar[Session] = ContextVar("session")


@contextmanager
def session(front: Front, verb: Literal["run", "plan"] = "run") -> Iterator[None]:
    """Set whom the sweeps of this block tell, and whether they only plan."""
    token = _session.set(Session(front, verb))
    try:
        yield
    finally:
        _session.reset(token)


def launch(loader: Any, master: DictConfig, overrides: Sequence[Sequence[str]]) -> list[JobReturn]:
    """Run a batch of cells for a Hydra sweeper: every distinct stage once.

    Returns:
        One finished job a cell, with its objective as the return value; a failed cell's job raises when it is read.
    """
    composer = Composer(loader, master)
    results = _carry_out([composer.compose(cell) for cell in overrides])
    return [_job(cell, result) for cell, result in zip(overrides, results, strict=True)]


def run(config: DictConfig) -> float | None:
    """Run the one cell that Hydra composed and return its objective.

    Raises:
        StagesFailed: a stage of the cell failed.
    """
    if HydraConfig.get().sweeper.get("params"):
        raise ConfigError(
            ["the configuration describes a sweep, and this is a single run; add `-m` to run all its cells"]
        )
    (result,) = _carry_out([composition_of(config)])
    if isinstance(result, StagesFailed):
        raise result
    return result


def run_stage(store: Store, prefix: str, front: Front) -> None:
    """Run one registered stage by hand, as a job does: everything comes from its frozen spec and the store.

    Args:
        store: where the spec and the stage's parents are.
        prefix: how its key begins.
        front: is told.

    Raises:
        StoreError: no stage, or more than one, has a key that begins so.
        StagesFailed: it failed.
    """
    stage = store.stage(store.key_like(prefix))
    plan = Plan.single(stage)
    planned = Planned(sweep=f"stage {stage.name}", cells=0, counts=plan.count(store), store=store.root)
    front.planned(planned)
    _made_sure(plan, store)
    outcome = _executed(plan, store, Local(), Jsonl(), front)
    front.finished(planned, outcome)
    if not outcome.complete:
        raise StagesFailed(f"{stage.name} {stage.key} failed; its log is {store.work(stage.key) / 'log.txt'}")


def _made_sure(plan: Plan, store: Store) -> None:
    """Find out what would stop the plan, and have everything here that comes from outside, before anything runs."""
    pending = plan.pending(store)
    if not pending:
        return
    plan.preflight(store)
    for part in fetchables(pending).values():
        part.fetch()
    store.prepare()


def _executed(plan: Plan, store: Store, cluster: Cluster, tracker: TrackerSettings, front: Front) -> Outcome:
    # Without this look ahead, a repeated sweep would import torch to learn that there is nothing to do.
    if not plan.pending(store):
        return Outcome(cached=tuple(stage.key for stage in plan.stages))
    return cluster.executor(tracker=tracker, on_event=front.event).run(plan, store)


def _job(overrides: Sequence[str], result: float | StagesFailed | None) -> JobReturn:
    status = JobStatus.FAILED if isinstance(result, StagesFailed) else JobStatus.COMPLETED
    job = JobReturn(overrides=list(overrides), status=status)
    job.return_value = result
    return job


def _carry_out(compositions: Sequence[Composition]) -> list[float | StagesFailed | None]:
    cells = cells_of(compositions)
    settings = settings_of(compositions[0])
    plan = Plan.of(leaf for cell in cells for leaf in cell.leaves)
    store = Store(Path(settings.store), allow=("harness.", *settings.targets))
    record = _record(cells, settings.title) | {"tracker": describe(settings.tracker)}
    now = _session.get(Session(Silent()))
    planned = Planned(sweep=record["id"], cells=len(cells), counts=plan.count(store), store=store.root)
    now.front.planned(planned)
    if now.verb == "plan":
        return [None] * len(cells)
    _made_sure(plan, store)
    # Before anything runs, so that a killed sweep can be reported; after the checks, so that a refused one is no sweep.
    store.write_sweep(record["id"], record)
    with mirrored(settings.tracker, store.root, record["id"], now.front.mirrored):
        outcome = _executed(plan, store, settings.cluster, settings.tracker, now.front)
        now.front.finished(planned, outcome)
    return [_result(cell, store, settings.objective) for cell in cells]


def _result(cell: Cell, store: Store, objective: Objective) -> float | StagesFailed | None:
    missing = [stage for stage in cell.leaves if not store.has(stage)]
    if missing:
        return StagesFailed(f"{len(missing)} of {len(cell.leaves)} results of the cell are missing")
    scores = {part: read_summary(store.path(cell.stages[part]))["score"] for part in ("harm", "accuracy")}
    return objective.value({"hs": scores["harm"], "fa": scores["accuracy"]})


def _record(cells: Sequence[Cell], title: str) -> dict[str, Any]:
    """Describe a sweep. The same cells have the same id, so a repeated sweep is the same sweep."""
    described = [
        {
            "labels": dict(cell.labels),
            "swept": dict(cell.swept),
            "protocol": dict(cell.protocol),
            "keys": {part: stage.key for part, stage in cell.stages.items()},
            "overrides": redacted(cell.overrides),
        }
        for cell in cells
    ]
    identity = sorted(key_of({"labels": cell["labels"], "keys": cell["keys"]}) for cell in described)
    return {
        "id": f"{title}-{key_of(identity)[:8]}",
        "title": title,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": redacted(sys.argv),
        "cells": described,
    }
