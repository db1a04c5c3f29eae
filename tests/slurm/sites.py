"""A toy sweep on the real Slurm: toy stages, a site that asks for little, and what one wants to know afterwards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults import wait_until
from toys import ALLOW, Silent, executor

from harness.engine.plan import Plan
from harness.engine.stage import Stage, lineage
from harness.engine.store import Store
from harness.execution.executor import Outcome, ignore_event
from harness.execution.ranks import Processes
from harness.execution.state import Member, StageStatus
from harness.slurm.client import Scheduler, SlurmClient
from harness.slurm.executor import SlurmExecutor
from harness.slurm.job_log import JobLog
from harness.slurm.states import states_of

SWEEP = "toys-12345678"
PATHS = [str(Path(__file__).parents[1] / "engine"), str(Path(__file__).parent), str(Path(__file__).parents[2])]


def nothing(threads: int | None) -> None:
    """Toys need no preparation."""


@dataclass(frozen=True, kw_only=True)
class ToySite:
    """A site of toys."""

    joins: tuple[str, ...] = ()
    fans: tuple[str, ...] = ()
    pack: Mapping[str, int] = field(default_factory=dict)
    array_limit: int = 100
    job_cap: int | None = None
    requeues: int = 3
    python: str | None = None
    grace_seconds: float = 20.0
    allow_drift: bool = False
    on_oom: str = "fail"
    minutes: int = 5
    warn_seconds: int = 30
    processes: Mapping[str, Processes] = field(default_factory=dict)

    def parameters(self, lines: Sequence[Sequence[str]], pack: int) -> dict[str, Any]:
        return {
            "time": self.minutes,
            "cpus_per_task": 1,
            "mem": "200MB",
            "signal_delay_s": self.warn_seconds,
            "setup": [f"export PYTHONPATH={':'.join(PATHS)}"],
        }

    def cpus(self, lines: Sequence[Sequence[str]]) -> int:
        return 1

    def device(self, lines: Sequence[Sequence[str]]) -> str:
        return "cpu"


@dataclass
class Toys:
    """A sweep of toy stages in a store of its own."""

    root: Path
    leaves: list[Stage]
    site: ToySite = field(default_factory=ToySite)
    sweep: str = SWEEP

    @property
    def store(self) -> Store:
        return Store(self.root, allow=ALLOW)

    @property
    def plan(self) -> Plan:
        return Plan.of(self.leaves)

    def submit(self, *, scheduler: Scheduler | None = None) -> Outcome:
        submitting = SlurmExecutor(
            site=self.site,
            scheduler=scheduler or SlurmClient(),
            sweep=self.sweep,
            tracker=Silent(),
            on_event=ignore_event,
            prepare=nothing,
        )
        return submitting.run(self.plan, self.store)

    def states(self) -> dict[str, StageStatus]:
        stages = lineage(tuple(self.leaves))
        members = {stage.key: Member(stage.name, [parent.key for parent in stage.parents]) for stage in stages}
        return states_of(members, self.store, SlurmClient(), sweep=self.sweep, patient=True)

    def state(self, stage: Stage) -> StageStatus:
        return self.states()[stage.key]

    def job(self, stage: Stage) -> str:
        return JobLog(self.root).latest()[stage.key].job

    def settled(self, timeout: float = 120) -> dict[str, StageStatus]:
        """Wait until nothing runs or waits."""

        def look() -> dict[str, StageStatus] | None:
            states = self.states()
            return None if any(state.what in ("pending", "running") for state in states.values()) else states

        return wait_until(look, timeout, what="the end of the sweep")

    def verify(self) -> None:
        """Read every stored artifact; a damaged one raises."""
        for stage in lineage(tuple(self.leaves)):
            if self.store.has(stage):
                Store(self.root, allow=ALLOW).path(stage)

    def numbers(self) -> dict[str, str]:
        """The results, as a table would show them."""
        paths = {leaf.key: self.store.path(leaf) / "sub folder" / "number.txt" for leaf in self.leaves}
        return {key: path.read_text() for key, path in paths.items()}

    def undisturbed(self, root: Path) -> dict[str, str]:
        """The results of a local run that nothing disturbed."""
        local = Toys(root, self.leaves)
        assert executor().run(local.plan, local.store).complete
        return local.numbers()


def record(toys: Toys) -> Store:
    """Give a sweep of toys a record, so that its user can name it; return the store as that user has it."""
    stages = {
        stage.key: {"kind": stage.name, "parents": [parent.key for parent in stage.parents]}
        for stage in toys.plan.stages
    }
    toys.store.write_sweep(toys.sweep, {"id": toys.sweep, "cells": [], "stages": stages, "place": {}})
    return Store(toys.root)
