"""Progress of a sweep: what was planned, and who receives events."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from harness.config.build import Skipped
from harness.engine.estimate import Cost, estimate_costs
from harness.engine.plan import Count, Plan
from harness.engine.store import Store
from harness.execution.cluster import Cluster
from harness.execution.executor import Event, Outcome


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep asks for.

    Attributes:
        sweep: the sweep's id.
        cells: how many cells.
        counts: distinct stages by kind, and how many of them are stored.
        store: the folder.
        costs: what the stages that are not stored will take, by kind.
        gpus: how many GPUs a stage is given, by kind, where the cluster is told.
        skipped: cells that cannot be, and why; they are not among the cells.
    """

    sweep: str
    cells: int
    counts: Mapping[str, Count]
    store: Path
    costs: Mapping[str, Cost]
    gpus: Mapping[str, int]
    skipped: Sequence[Skipped] = ()

    @classmethod
    def of(
        cls, sweep: str, plan: Plan, store: Store, cluster: Cluster, *, cells: int, skipped: Sequence[Skipped] = ()
    ) -> "SweepPlan":
        """Count and predict."""
        return cls(
            sweep=sweep,
            cells=cells,
            counts=plan.count(store),
            store=store.root,
            costs=estimate_costs(plan.pending(store), store),
            gpus=cluster.gpus,
            skipped=skipped,
        )


class Reporter(Protocol):
    """Whoever is told what happens: the command line, or a test."""

    def planned(self, planned: SweepPlan) -> None:
        """The plan is made and checked; nothing has run."""
        ...

    def event(self, event: Event) -> None:
        """A stage changed its state."""
        ...

    def finished(self, planned: SweepPlan, outcome: Outcome) -> None:
        """Nothing is left to run."""
        ...

    def say(self, text: str) -> None:
        """There is something to say beside the run; may come from another thread."""
        ...


class NullReporter:
    """Tells nobody."""

    def planned(self, planned: SweepPlan) -> None:
        """Nothing."""

    def event(self, event: Event) -> None:
        """Nothing."""

    def finished(self, planned: SweepPlan, outcome: Outcome) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Session:
    """What Hydra's plugins cannot be given as an argument: the verb, and whom to tell."""

    front: Reporter
    verb: Literal["run", "plan"] = "run"


current_session: ContextVar[Session] = ContextVar("session")


@contextmanager
def session(front: Reporter, verb: Literal["run", "plan"] = "run") -> Iterator[None]:
    """Set whom the sweeps of this block tell, and whether they only plan."""
    token = current_session.set(Session(front, verb))
    try:
        yield
    finally:
        current_session.reset(token)
