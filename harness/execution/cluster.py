"""The cluster that a sweep runs on: the protocol that the local and the Slurm settings implement."""

from collections.abc import Callable, Mapping
from typing import Protocol

from harness.engine.stage import Stage
from harness.engine.tracker import TrackerSettings
from harness.errors import Problem
from harness.execution.executor import Event, Executor
from harness.execution.judge_service import JudgeService

VLLM_PYTHON = "HARNESS_VLLM_PYTHON"
"""The environment variable that names the interpreter of vLLM to a stage; ``cluster.vllm_python`` sets it."""


class Cluster(Protocol):
    """Frozen settings of where plans run."""

    @property
    def name(self) -> str:
        """The name of the settings class."""
        ...

    @property
    def version(self) -> int:
        """The version of the settings class."""
        ...

    @property
    def gpus(self) -> Mapping[str, int]:
        """GPUs per stage, by kind; empty if unknown."""
        ...

    @property
    def gpu_memory_gib(self) -> float | None:
        """Memory of a GPU in GiB; None if it is not stated."""
        ...

    @property
    def vllm_python(self) -> str | None:
        """The interpreter of an environment that has vLLM, where stages run."""
        ...

    @property
    def judge_service(self) -> JudgeService:
        """The service that a judge asks, from where stages run."""
        ...

    @property
    def wait(self) -> bool:
        """Whether the executor blocks until every stage has ended, so that results can be returned."""
        ...

    @property
    def dry_run(self) -> bool:
        """Whether nothing is run or submitted, and therefore nothing recorded."""
        ...

    def shards(self, kind: str) -> int:
        """Return over how many processes the model of a training of a kind is sharded; 1 if it is not."""
        ...

    def kind_problems(self, kinds: Mapping[str, type[Stage]]) -> list[Problem]:
        """Return problems with settings that name an unknown kind of stage, or that its kind does not support."""
        ...

    def executor(
        self,
        *,
        sweep: str,
        tracker: TrackerSettings,
        on_event: Callable[[Event], None],
        prepare: Callable[[int | None], None],
    ) -> Executor:
        """Return the executor for the plan of a sweep.

        Args:
            sweep: the sweep's id.
            tracker: opens the curve of each stage.
            on_event: called with every event of a stage.
            prepare: called once in every process that runs stages, before its first stage, with the number of CPU
                threads; picklable.
        """
        ...


def micro_batch_size_of(setting: Mapping[str, int] | int | None, kind: str) -> int | None:
    """Return the micro-batch size for a kind of stage; None is a process's whole share of a batch.

    Args:
        setting: one size for all kinds, or sizes by kind.
        kind: the kind of stage.
    """
    return setting.get(kind) if isinstance(setting, Mapping) else setting


def micro_batch_problems(setting: Mapping[str, int] | int | None) -> list[Problem]:
    """Return the range errors of the setting ``micro_batch_size``."""
    by_kind = setting if isinstance(setting, Mapping) else {"": setting}
    return [
        Problem(kind, f"{size} is too small; expected at least 1").under("micro_batch_size")
        for kind, size in by_kind.items()
        if size is not None and size < 1
    ]


def micro_batch_kind_problems(
    setting: Mapping[str, int] | int | None, kinds: Mapping[str, type[Stage]]
) -> list[Problem]:
    """Return a problem for each kind named in ``micro_batch_size`` that is not a training stage."""
    training_kinds = [kind for kind, stage in kinds.items() if stage.trains]
    named_kinds = setting if isinstance(setting, Mapping) else ()
    return [
        Problem(f"micro_batch_size.{kind}", f"unknown setting; expected some of {', '.join(training_kinds)}")
        for kind in named_kinds
        if kind not in training_kinds
    ]
