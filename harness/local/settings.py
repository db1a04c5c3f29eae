"""Settings of local execution. Resources are set here and never on a stage, so they cannot enter its identity."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, final

from harness.engine.checks import counts
from harness.engine.stage import Stage
from harness.engine.tracker import TrackerSettings
from harness.errors import ConfigError, Problem
from harness.execution.cluster import micro_batch_kind_problems, micro_batch_problems, micro_batch_size_of
from harness.execution.executor import Event, Executor
from harness.execution.ranks import DEFAULT, Processes
from harness.local.executor import LocalExecutor

AUTO = "auto"


@final
@dataclass(frozen=True, kw_only=True)
class Local:
    """This machine.

    Attributes:
        workers: stages that run concurrently, each in its own process; 1 runs all of them in this process.
        processes: processes (ranks) per training stage; on GPUs, one per GPU.
        threads: CPU threads per process; null leaves a single process at torch's default and divides the cores evenly
            among several.
        device: a torch device string, or ``auto`` for a GPU if one is available.
        micro_batch_size: examples per forward pass in each process: one number, or a mapping by kind of stage; null
            runs a process's whole share of a batch at once.
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
        found += micro_batch_problems(self.micro_batch_size)
        if self.workers > 1 and self.processes > 1:
            found.append(
                Problem(
                    "processes",
                    f"{self.processes} for each of {self.workers} workers would use the same devices; "
                    "expected 1, or `workers` 1",
                )
            )
        return found

    @property
    def gpus(self) -> Mapping[str, int]:
        """Unknown: a stage uses whatever this machine has."""
        return {}

    @property
    def wait(self) -> bool:
        """Always true: local runs are synchronous."""
        return True

    @property
    def dry_run(self) -> bool:
        """Always false: local execution has no dry run."""
        return False

    def kind_problems(self, kinds: Mapping[str, type[Stage]]) -> list[Problem]:
        """Return problems with settings that name an unknown kind of stage, or that its kind does not support."""
        return micro_batch_kind_problems(self.micro_batch_size, kinds)

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
            ConfigError: a GPU was requested and none is available, or there are fewer GPUs than processes.
        """
        if self.device.startswith("cuda") and _default_device() != "cuda":
            raise ConfigError(
                [
                    Problem(
                        "cluster.device",
                        f"{self.device} was requested, but torch finds no GPU; expected `auto` or `cpu`.",
                    )
                ]
            )
        device = _default_device() if self.device == AUTO else self.device
        if self.processes > 1 and device.startswith("cuda") and (gpus := _gpu_count()) < self.processes:
            raise ConfigError(
                [
                    Problem(
                        "cluster.processes",
                        f"{self.processes} processes need a GPU each, and there are {gpus}; expected at most {gpus}.",
                    )
                ]
            )
        threads = self.threads
        total = self.workers * self.processes
        if threads is None and total > 1:
            threads = max(1, len(os.sched_getaffinity(0)) // total)
        return LocalExecutor(
            workers=self.workers,
            device=device,
            processes={
                kind: Processes(count=self.processes, micro_batch_size=micro_batch_size_of(self.micro_batch_size, kind))
                for kind in (DEFAULT, *(self.micro_batch_size if isinstance(self.micro_batch_size, Mapping) else ()))
            },
            tracker=tracker,
            on_event=on_event,
            initialize=partial(prepare, threads),
        )


def _gpu_count() -> int:
    import torch

    return torch.cuda.device_count()


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
