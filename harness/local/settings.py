"""Settings of local execution. Resources are set here and never on a stage, so they cannot enter its identity."""

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal, NamedTuple, final

from harness.engine.checks import counts, positive
from harness.engine.stage import Stage
from harness.engine.tracker import TrackerSettings
from harness.errors import ConfigError, Problem
from harness.execution.cluster import micro_batch_kind_problems, micro_batch_problems, micro_batch_size_of
from harness.execution.executor import Event, Executor
from harness.execution.judge_service import JudgeService
from harness.execution.ranks import DEFAULT, Processes
from harness.local.executor import LocalExecutor
from harness.local.gpus import group_gpus, is_mig, visible_gpus

AUTO: Literal["auto"] = "auto"
GPU = "cuda"


class Placement(NamedTuple):
    """How many workers this machine runs, and on which devices.

    Attributes:
        workers: stages that run concurrently.
        gpus: values of ``CUDA_VISIBLE_DEVICES``, assigned to the workers round robin; empty if they are not bound.
        device: a torch device string.
    """

    workers: int
    gpus: tuple[str, ...]
    device: str


@final
@dataclass(frozen=True, kw_only=True)
class Local:
    """This machine.

    Attributes:
        workers: stages that run concurrently, each in its own process; 1 runs all of them in this process. ``auto`` is
            one per visible GPU, or 1 without a GPU. Each is bound to one GPU, or to as many as ``processes``; a larger
            number is assigned round robin.
        workers_per_gpu: for ``workers: auto`` with models too small to keep a GPU busy.
        processes: processes (ranks) per training stage; on GPUs, one per GPU.
        threads: CPU threads per process; null leaves a single process at torch's default and divides the cores evenly
            among several.
        device: a torch device string, or ``auto`` for a GPU if one is available.
        micro_batch_size: examples per forward pass in each process: one number, or a mapping by kind of stage; null
            runs a process's whole share of a batch at once.
        gpu_memory_gib: memory of a GPU in GiB, by which trainings that cannot fit are refused; null does not check.
        vllm_python: Python interpreter of an environment that has vLLM, for ``evaluation.decoding.engine=vllm``.
        judge_service: the service that a judge asks: its address, prices and limits.
    """

    name: ClassVar[str] = "local"
    version: ClassVar[int] = 1
    workers: int | Literal["auto"] = AUTO
    workers_per_gpu: int = 1
    processes: int = 1
    threads: int | None = None
    device: str = AUTO
    micro_batch_size: Mapping[str, int] | int | None = None
    gpu_memory_gib: float | None = None
    vllm_python: str | None = None
    judge_service: JudgeService = field(default_factory=JudgeService)

    def problems(self) -> list[Problem]:
        """Range errors."""
        numbers = ("workers_per_gpu", "processes", "threads")
        found = counts(self, *(numbers if self.workers == AUTO else ("workers", *numbers)))
        found += [*micro_batch_problems(self.micro_batch_size), *positive(self, "gpu_memory_gib")]
        if self.vllm_python is not None and shutil.which(self.vllm_python) is None:
            found.append(
                Problem("vllm_python", f"`{self.vllm_python}` cannot be run; expected the path of a Python interpreter")
            )
        if re.fullmatch(rf"{AUTO}|cpu|{GPU}(:\d+)?", self.device) is None:
            found.append(Problem("device", f"{self.device!r} is no device; expected `auto`, `cpu`, `cuda` or `cuda:0`"))
        if self.workers_per_gpu > 1 and self.workers != AUTO:
            found.append(
                Problem(
                    "workers_per_gpu",
                    f"{self.workers_per_gpu} has no effect on {self.workers} workers; expected 1, or `workers: auto`",
                )
            )
        if self.workers_per_gpu > 1 and self.processes > 1:
            found.append(
                Problem(
                    "workers_per_gpu",
                    f"{self.workers_per_gpu} workers cannot share the GPUs of {self.processes} processes; expected 1",
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

    def shards(self, kind: str) -> int:  # noqa: ARG002
        """Return 1: local execution does not shard."""
        return 1

    def kind_problems(self, kinds: Mapping[str, type[Stage]]) -> list[Problem]:
        """Return problems with settings that name an unknown kind of stage, or that its kind does not support."""
        return micro_batch_kind_problems(self.micro_batch_size, kinds)

    def placement(self) -> Placement:
        """Return the workers of this machine; torch counts its GPUs.

        Raises:
            ConfigError: a GPU was requested and none is available, or there are too few for the processes.
        """
        gpus = visible_gpus() if self.device == AUTO or self.device.startswith(GPU) else ()
        if not gpus and self.device.startswith(GPU):
            raise _config_error(
                "device", f"{self.device} was requested, but torch finds no GPU; expected `auto` or `cpu`."
            )
        device = self.device if self.device != AUTO else GPU if gpus else "cpu"
        _, _, number = device.partition(":")
        if number and int(number) >= len(gpus):
            raise _config_error("device", f"{device} was requested, and there are {len(gpus)} GPUs, from `cuda:0` on.")
        if number and self.processes > 1:
            raise _config_error("device", f"{self.processes} processes cannot share {device}; expected `cuda`.")
        if device != GPU:
            # On the CPU, or all of them on the one GPU that was named: the only one that they see.
            workers = 1 if self.workers == AUTO else self.workers
            return Placement(workers, (gpus[int(number)],), GPU) if number else Placement(workers, (), device)
        groups = group_gpus(gpus, self.processes)
        if self.processes > 1 and is_mig(gpus[0]):
            raise _config_error("processes", f"{self.processes} processes cannot share MIG instances; expected 1.")
        if not groups:
            raise _config_error(
                "processes",
                f"{self.processes} processes need a GPU each, and there are {len(gpus)}; expected at most {len(gpus)}.",
            )
        workers = len(groups) * self.workers_per_gpu if self.workers == AUTO else self.workers
        if self.processes > 1 and workers > len(groups):
            raise _config_error(
                "workers",
                f"{workers} workers of {self.processes} processes need {workers * self.processes} GPUs, and there are "
                f"{len(gpus)}; expected `auto` or at most {len(groups)}.",
            )
        return Placement(workers, groups, device)

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
        placement = self.placement()
        threads = self.threads
        total = placement.workers * self.processes
        if threads is None and total > 1:
            threads = max(1, len(os.sched_getaffinity(0)) // total)
        return LocalExecutor(
            workers=placement.workers,
            gpus=placement.gpus,
            device=placement.device,
            processes={
                kind: Processes(count=self.processes, micro_batch_size=micro_batch_size_of(self.micro_batch_size, kind))
                for kind in (DEFAULT, *(self.micro_batch_size if isinstance(self.micro_batch_size, Mapping) else ()))
            },
            tracker=tracker,
            on_event=on_event,
            initialize=partial(prepare, threads),
        )


def _config_error(setting: str, text: str) -> ConfigError:
    return ConfigError([Problem(f"cluster.{setting}", text)])
