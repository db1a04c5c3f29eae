"""Where a plan runs, as seen by a sweep: the protocol that local and Slurm settings satisfy."""

from collections.abc import Callable, Mapping
from typing import Protocol

from harness.engine.stage import Stage
from harness.engine.tracker import TrackerSettings
from harness.errors import Problem
from harness.execution.executor import Event, Executor


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

    def misfits(self, kinds: Mapping[str, type[Stage]]) -> list[Problem]:
        """Return which settings name a kind of stage that there is not, or ask of one what it cannot do."""
        ...

    def executor(
        self,
        *,
        sweep: str,
        tracker: TrackerSettings,
        on_event: Callable[[Event], None],
        prepare: Callable[[int | None], None],
    ) -> Executor:
        """Return what runs the plan of a sweep there.

        Args:
            sweep: the sweep's id.
            tracker: opens the curve of each stage.
            on_event: called for everything that happens to a stage.
            prepare: called with the number of CPU threads in every process that runs stages, before the first;
                picklable.
        """
        ...


def rows_at_once(given: Mapping[str, int] | int | None, kind: str) -> int | None:
    """Return how many rows a process of a stage of this kind takes through the model at once; None is all.

    Args:
        given: for every kind of stage alike, or for each kind by its name.
        kind: of the stage.
    """
    return given.get(kind) if isinstance(given, Mapping) else given


def rows_problems(given: Mapping[str, int] | int | None) -> list[Problem]:
    """Return the range errors of the setting ``micro_batch_size``."""
    by_kind = given if isinstance(given, Mapping) else {"": given}
    return [
        Problem(kind, f"{rows} is too small; expected at least 1").under("micro_batch_size")
        for kind, rows in by_kind.items()
        if rows is not None and rows < 1
    ]


def rows_misfits(given: Mapping[str, int] | int | None, kinds: Mapping[str, type[Stage]]) -> list[Problem]:
    """Return which kinds of the setting ``micro_batch_size`` are none that train."""
    trained = [kind for kind, stage in kinds.items() if stage.trains]
    named = given if isinstance(given, Mapping) else ()
    return [
        Problem(f"micro_batch_size.{kind}", f"unknown setting; expected some of {', '.join(trained)}")
        for kind in named
        if kind not in trained
    ]
