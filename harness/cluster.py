"""Where a plan runs, as a setting. Resources live here and never on a stage, so they cannot enter identity."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import ClassVar, Protocol, final

from harness.engine.executor import Event, Executor
from harness.engine.local import LocalExecutor
from harness.engine.ranks import Processes
from harness.errors import ConfigError
from harness.ranges import counts
from harness.stages.align import Align
from harness.stages.finetune import Finetune
from harness.tracking.tracker import TrackerSettings

AUTO = "auto"
SHARED = (Align.name, Finetune.name)
"""Kinds of stages that several processes can share."""


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


MICRO_BATCHED = tuple(item.name for item in fields(MicroBatches))
"""Kinds of stages whose batches can be cut."""


def micro_batch_size(given: MicroBatches | int | None, kind: str) -> int | None:
    """Return how many rows a process of a stage of this kind takes through the model at once; None is all."""
    if kind not in MICRO_BATCHED:
        return None
    return getattr(given, kind) if isinstance(given, MicroBatches) else given


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
    micro_batch_size: MicroBatches | int | None = None

    def problems(self) -> list[str]:
        """Range errors."""
        found = counts(self, "workers", "processes", "threads")
        if isinstance(self.micro_batch_size, int):
            found += counts(self, "micro_batch_size")
        if self.workers > 1 and self.processes > 1:
            found.append(
                f"`processes`: {self.processes} for each of {self.workers} workers would meet on the same devices; "
                "expected 1, or `workers` 1"
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

    def executor(self, *, sweep: str, tracker: TrackerSettings, on_event: Callable[[Event], None]) -> Executor:  # noqa: ARG002
        """Return the local executor.

        Raises:
            ConfigError: a GPU is asked for and there is none, or fewer than processes.
        """
        if self.device.startswith("cuda") and _device() != "cuda":
            raise ConfigError(
                [f"`cluster.device`: {self.device} is asked for, but torch sees no GPU; expected `auto` or `cpu`."]
            )
        device = _device() if self.device == AUTO else self.device
        if self.processes > 1 and device.startswith("cuda") and (gpus := _gpus()) < self.processes:
            raise ConfigError([f"`cluster.processes`: {self.processes} share {gpus} GPUs; expected at most {gpus}."])
        threads = self.threads
        together = self.workers * self.processes
        if threads is None and together > 1:
            threads = max(1, len(os.sched_getaffinity(0)) // together)
        return LocalExecutor(
            workers=self.workers,
            device=device,
            processes={
                kind: Processes(
                    count=self.processes if kind in SHARED else 1,
                    micro_batch_size=micro_batch_size(self.micro_batch_size, kind),
                )
                for kind in MICRO_BATCHED
            },
            tracker=tracker,
            on_event=on_event,
            initialize=partial(prepare_process, threads),
        )


def prepare_process(threads: int | None) -> None:
    """Settle what every process that runs stages has in common."""
    import torch
    from transformers.utils import logging as transformers_logging

    # Loading and saving draw bars of their own, across ours.
    transformers_logging.disable_progress_bar()
    # Forked tokenizer threads dead-lock; ours are called from one thread anyway.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if threads is not None:
        torch.set_num_threads(threads)


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
