"""Where a plan runs, as seen by a sweep: the protocol that local and Slurm settings satisfy."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, final

from harness.execution.executor import Event, Executor
from harness.local.settings import MICRO_BATCHED
from harness.settings.checks import counts
from harness.tracking.tracker import TrackerSettings


class Cluster(Protocol):
    """Frozen settings of a place where plans run."""

    @property
    def name(self) -> str:
        """The place."""
        ...

    @property
    def version(self) -> int:
        """The version of its settings."""
        ...

    @property
    def gpus(self) -> Mapping[str, int]:
        """How many GPUs a stage is given, by kind; empty if that is not told."""
        ...

    @property
    def wait(self) -> bool:
        """Whether the executor returns only when nothing is left to run, so that there are results to return."""
        ...

    @property
    def rehearsing(self) -> bool:
        """Whether nothing will run, so that nothing is to be remembered of the sweep."""
        ...

    def executor(self, *, sweep: str, tracker: TrackerSettings, on_event: Callable[[Event], None]) -> Executor:
        """Return what runs the plan of a sweep there."""
        ...


@final
@dataclass(frozen=True, kw_only=True)
class MicroBatches:
    """Rows that each process takes through the model at once, at most; null is all of its share of a batch.

    Results are the same up to rounding, and so are keys: what does not fit into memory is cut. With dropout, other
    activations are dropped.
    """

    name: ClassVar[str] = "micro batches"
    version: ClassVar[int] = 1
    align: int | None = None
    finetune: int | None = None
    repair: int | None = None

    def problems(self) -> list[str]:
        """Range errors."""
        return counts(self, "align", "finetune", "repair")


def micro_batch_size(given: MicroBatches | int | None, kind: str) -> int | None:
    """Return how many rows a process of a stage of this kind takes through the model at once; None is all."""
    if kind not in MICRO_BATCHED:
        return None
    return getattr(given, kind) if isinstance(given, MicroBatches) else given
