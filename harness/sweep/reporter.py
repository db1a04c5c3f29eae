"""Progress of a sweep: the summary of its plan, and the reporters that receive its events."""

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
from harness.sweep.quantized_bases import QuantizedBase, quantized_bases
from harness.sweep.weight_training import WeightTraining, weight_trainings


@dataclass(frozen=True)
class SweepPlan:
    """Summary of a sweep's plan.

    Attributes:
        sweep: the sweep's id.
        cells: number of cells.
        counts: number of distinct stages, and of those stored, by kind.
        store: the store's folder.
        costs: predicted cost of the stages that are not stored, by kind.
        gpus: number of GPUs per stage, by kind, where the cluster settings specify it.
        skipped: invalid cells, with reasons; not counted in ``cells``.
        weight_trainings: trainings of a model's own weights that are not stored, with the memory that they need.
        quantized_bases: 4-bit bases that stages load which are not stored.
    """

    sweep: str
    cells: int
    counts: Mapping[str, Count]
    store: Path
    costs: Mapping[str, Cost]
    gpus: Mapping[str, int]
    skipped: Sequence[Skipped] = ()
    weight_trainings: Sequence[WeightTraining] = ()
    quantized_bases: Sequence[QuantizedBase] = ()

    @classmethod
    def of(
        cls, sweep: str, plan: Plan, store: Store, cluster: Cluster, *, cells: int, skipped: Sequence[Skipped] = ()
    ) -> "SweepPlan":
        """Count the stages of a plan and predict their cost."""
        return cls(
            sweep=sweep,
            cells=cells,
            counts=plan.count(store),
            store=store.root,
            costs=estimate_costs(plan.pending(store), store),
            gpus=cluster.gpus,
            skipped=skipped,
            weight_trainings=weight_trainings(plan.pending(store), cluster),
            quantized_bases=quantized_bases(plan.pending(store)),
        )


class Reporter(Protocol):
    """Receives progress events; implemented by the command line and by tests."""

    def planned(self, planned: SweepPlan) -> None:
        """Called once the plan is made and checked, before anything runs."""
        ...

    def event(self, event: Event) -> None:
        """Called when the state of a stage changes."""
        ...

    def finished(self, planned: SweepPlan, outcome: Outcome) -> None:
        """Called when the run has ended."""
        ...

    def note(self, text: str) -> None:
        """Called with a message that is not about a stage; possibly from another thread."""
        ...


class NullReporter:
    """Discards all events."""

    def planned(self, planned: SweepPlan) -> None:
        """Nothing."""

    def event(self, event: Event) -> None:
        """Nothing."""

    def finished(self, planned: SweepPlan, outcome: Outcome) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Session:
    """Context that cannot be passed through Hydra's plugins as arguments: the reporter and the verb."""

    reporter: Reporter
    verb: Literal["run", "plan"] = "run"


current_session: ContextVar[Session] = ContextVar("session")


@contextmanager
def session(reporter: Reporter, verb: Literal["run", "plan"] = "run") -> Iterator[None]:
    """Set the reporter of the sweeps in this block, and whether they are only planned."""
    token = current_session.set(Session(reporter, verb))
    try:
        yield
    finally:
        current_session.reset(token)
