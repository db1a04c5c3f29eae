"""Where a plan runs, as a setting. Resources live here and never on a stage, so they cannot enter identity."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, final

from harness.engine.checks import counts
from harness.engine.stage import Stage
from harness.engine.tracker import TrackerSettings
from harness.errors import ConfigError, Problem
from harness.execution.cluster import rows_at_once, rows_misfits, rows_problems
from harness.execution.executor import Event, Executor
from harness.execution.ranks import DEFAULT, Processes
from harness.local.executor import LocalExecutor

AUTO = "auto"


@final
@dataclass(frozen=True, kw_only=True)
class Local:
    """This machine.

    Attributes:
        workers: stages that run at the same time, each in a process of its own; 1 runs everything in this process.
        processes: processes that share each training stage, on GPUs one for each; 1 does not share it.
        threads: CPU threads of each of them; null leaves torch's choice to one process and shares the cores among many.
        device: a torch device string, or ``auto`` for a GPU if there is one.
        micro_batch_size: rows that each process takes through the model at once: a number, or one for each kind of
            stage; null is all of its share of a batch.
    """

    name: ClassVar[str] = "local"
    version: ClassVar[int] = 1
    workers: int = 1
    processes: int = 1
    threads: int | None = None
    device: str = AUTO
    micro_batch_size: Mapping[str, int] | int | None = None

    def problems(self) -> list[Problem]:
        """Range errors."""
        found = counts(self, "workers", "processes", "threads")
        found += rows_problems(self.micro_batch_size)
        if self.workers > 1 and self.processes > 1:
            found.append(
                Problem(
                    "processes",
                    f"{self.processes} for each of {self.workers} workers would meet on the same devices; "
                    "expected 1, or `workers` 1",
                )
            )
        return found

    @property
    def gpus(self) -> Mapping[str, int]:
        """Not told: a stage takes what the machine has."""
        return {}

    @property
    def wait(self) -> bool:
        """Always."""
        return True

    @property
    def rehearsing(self) -> bool:
        """Never."""
        return False

    def misfits(self, kinds: Mapping[str, type[Stage]]) -> list[Problem]:
        """Return which settings name a kind of stage that there is not, or ask of one what it cannot do."""
        return rows_misfits(self.micro_batch_size, kinds)

    def executor(
        self,
        *,
        sweep: str,  # noqa: ARG002
        tracker: TrackerSettings,
        on_event: Callable[[Event], None],
        prepare: Callable[[int | None], None],
    ) -> Executor:
        """Return the local executor.

        Raises:
            ConfigError: a GPU is asked for and there is none, or fewer than processes.
        """
        if self.device.startswith("cuda") and _device() != "cuda":
            raise ConfigError(
                [
                    Problem(
                        "cluster.device",
                        f"{self.device} is asked for, but torch sees no GPU; expected `auto` or `cpu`.",
                    )
                ]
            )
        device = _device() if self.device == AUTO else self.device
        if self.processes > 1 and device.startswith("cuda") and (gpus := _gpus()) < self.processes:
            raise ConfigError(
                [Problem("cluster.processes", f"{self.processes} share {gpus} GPUs; expected at most {gpus}.")]
            )
        threads = self.threads
        together = self.workers * self.processes
        if threads is None and together > 1:
            threads = max(1, len(os.sched_getaffinity(0)) // together)
        return LocalExecutor(
            workers=self.workers,
            device=device,
            processes={
                kind: Processes(count=self.processes, micro_batch_size=rows_at_once(self.micro_batch_size, kind))
                for kind in (DEFAULT, *(self.micro_batch_size if isinstance(self.micro_batch_size, Mapping) else ()))
            },
            tracker=tracker,
            on_event=on_event,
            initialize=partial(prepare, threads),
        )


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
