"""Settings of Slurm execution: resources per kind of stage, and limits of the site. Not part of identity."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, final

from harness.engine.checks import counts, not_negative, positive
from harness.engine.stage import Stage
from harness.engine.tracker import TrackerSettings
from harness.errors import Problem
from harness.execution.cluster import micro_batch_kind_problems, micro_batch_problems, micro_batch_size_of
from harness.execution.executor import Event, Executor
from harness.execution.judge_service import JudgeService
from harness.execution.ranks import DEFAULT, Processes
from harness.slurm.client import SlurmClient
from harness.slurm.dry_run import DryRun
from harness.slurm.executor import SlurmExecutor

DEFERRED_MINUTES = 10
"""Time limit of the job that makes a deferred submission."""


@final
@dataclass(frozen=True, kw_only=True)
class Resources:
    """Resources of a stage of one kind.

    Attributes:
        minutes: time limit; a job that runs several stages gets the sum of theirs.
        cpus: cores per process.
        mem_gb: host memory per node in GB; null is the site's default.
        gpus: GPUs per node; 0 is a CPU job.
        processes: processes per node of a training stage; usually one per GPU.
        nodes: nodes of a training stage.
        sharding: ``ddp`` replicates the model in every process; ``fsdp`` shards the base under an adapter, or all
            weights where they are trained.
        pack: number of chains of stages beginning with this kind that one job runs one after another; the base model
            is loaded once.
    """

    name: ClassVar[str] = "resources"
    version: ClassVar[int] = 1
    minutes: int
    cpus: int = 1
    mem_gb: float | None = None
    gpus: int = 0
    processes: int = 1
    nodes: int = 1
    sharding: Literal["ddp", "fsdp"] = "ddp"
    pack: int = 1

    def problems(self) -> list[Problem]:
        """Range errors."""
        integers = ("minutes", "cpus", "processes", "nodes", "pack")
        found = [*counts(self, *integers), *not_negative(self, "gpus"), *positive(self, "mem_gb")]
        if self.processes > self.gpus > 0:
            found.append(
                Problem("processes", f"{self.processes} cannot share {self.gpus} GPUs; expected one GPU for each")
            )
        return found


@final
@dataclass(frozen=True, kw_only=True)
class Slurm:
    """A Slurm cluster; implements ``execution.cluster.Cluster``.

    Attributes:
        partition: partition; null is the site's default. So with ``account``, ``qos`` and ``constraint``.
        account: account to charge.
        qos: quality of service.
        constraint: required node features.
        sbatch: additional sbatch options, such as ``["mail-type=FAIL", "exclusive"]``.
        setup: shell commands run before Python starts, such as ``["module load cuda"]``.
        python: command that starts Python on a node, for example in a container; null is the submitting interpreter.
        resources: resources by kind of stage; ``default`` applies to kinds that are not listed.
        joins: kinds that are fused into the job of their parent if it has no other child; null leaves it to the stages
            (``Stage.fuses``).
        fans: kinds of which several children of one parent may be fused; null leaves it to the stages
            (``Stage.fuses_siblings``).
        array_limit: maximum number of elements in a job array (the site's ``MaxArraySize`` minus one).
        array_parallelism: elements of an array that may run at the same time.
        job_cap: maximum number of your jobs in the queue; null if the site has no limit.
        requeues: how often a job may be requeued after its time limit, a preemption or a node failure.
        warn_seconds: seconds before the time limit at which Slurm signals a job, which then writes a checkpoint.
        micro_batch_size: examples per forward pass in each process: one number, or a mapping by kind of stage; null
            runs a process's whole share of a batch at once.
        gpu_memory_gib: memory of a GPU in GiB, by which trainings that cannot fit are refused; null does not check.
        vllm_python: Python interpreter of an environment that has vLLM, for ``evaluation.decoding.engine=vllm``.
        judge_service: the service that a judge asks: its address, prices and limits.
        on_oom: on a retry after an out-of-memory error, ``shrink`` halves the micro-batch size, which does not change
            the result and is noted in the report; ``fail`` keeps it.
        allow_drift: whether jobs may run with other code than at submission.
        wait: block until every stage has ended, and return the results.
        dry_run: write the scripts without submitting them.
        poll_seconds: interval between queries of the queue while waiting.
    """

    name: ClassVar[str] = "slurm"
    version: ClassVar[int] = 1
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    sbatch: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    python: str | None = None
    resources: Mapping[str, Resources]
    joins: tuple[str, ...] | None = None
    fans: tuple[str, ...] | None = None
    array_limit: int = 1000
    array_parallelism: int = 256
    job_cap: int | None = None
    requeues: int = 3
    warn_seconds: int = 90
    micro_batch_size: Mapping[str, int] | int | None = None
    gpu_memory_gib: float | None = None
    vllm_python: str | None = None
    judge_service: JudgeService = field(default_factory=JudgeService)
    on_oom: Literal["fail", "shrink"] = "fail"
    allow_drift: bool = False
    wait: bool = False
    dry_run: bool = False
    poll_seconds: float = 5.0

    def problems(self) -> list[Problem]:
        """Range errors."""
        found = [
            *counts(self, "array_limit", "array_parallelism", "warn_seconds"),
            *not_negative(self, "requeues"),
            *positive(self, "poll_seconds", "gpu_memory_gib"),
        ]
        found += micro_batch_problems(self.micro_batch_size)
        if self.job_cap is not None and self.job_cap < 3:
            found.append(Problem("job_cap", f"{self.job_cap} is too small; expected at least 3, or null"))
        too_short = [kind for kind, one in self.resources.items() if 60 * one.minutes <= self.warn_seconds]
        if too_short:
            found.append(
                Problem(
                    "warn_seconds",
                    f"{self.warn_seconds} is not less than the time limit of {', '.join(too_short)}; such a "
                    "job would be signalled as it starts",
                )
            )
        invalid = [text for text in self.sbatch if not re.fullmatch(r"[a-z][a-z-]*(=.+)?", text)]
        found += [
            Problem("sbatch", f"{text!r} is not an sbatch option; expected `name=value` or `name`") for text in invalid
        ]
        if self.wait and self.dry_run:
            found.append(Problem("wait", "nothing is submitted with `dry_run`, so there is nothing to wait for"))
        return found

    def shards(self, kind: str) -> int:
        """Return over how many processes the model of a training of a kind is sharded; 1 if it is not."""
        found = self.resources_of(kind)
        return found.processes * found.nodes if found.sharding == "fsdp" else 1

    def kind_problems(self, kinds: Mapping[str, type[Stage]]) -> list[Problem]:
        """Return problems with settings that name an unknown kind of stage, or that its kind does not support."""
        named = [("resources", kind) for kind in self.resources if kind != DEFAULT]
        named += [(name, kind) for name in ("joins", "fans") for kind in getattr(self, name) or ()]
        found = [
            Problem(name, f"`{kind}` is not a kind of stage; expected some of {', '.join(sorted(kinds))}")
            for name, kind in named
            if kind not in kinds
        ]
        if DEFAULT not in self.resources and (missing := [kind for kind in kinds if kind not in self.resources]):
            found.append(Problem("resources", f"no resources for {', '.join(missing)}; add them, or `{DEFAULT}`"))
        found += micro_batch_kind_problems(self.micro_batch_size, kinds)
        return found + [
            Problem(f"resources.{kind}.{name}", f"{count}, but such a stage runs in one process; expected 1")
            for kind, one in self.resources.items()
            for name, count in (("processes", one.processes), ("nodes", one.nodes))
            if count > 1 and kind in kinds and not kinds[kind].parallel
        ]

    @property
    def pack(self) -> Mapping[str, int]:
        """Number of chains per job, by the kind that they begin with."""
        return {kind: one.pack for kind, one in self.resources.items()}

    @property
    def gpus(self) -> Mapping[str, int]:
        """GPUs per stage over all nodes, by kind."""
        return {kind: one.gpus * one.nodes for kind, one in self.resources.items()}

    @property
    def grace_seconds(self) -> float:
        """Seconds that a stage may run on after the signal; the rest is needed for requeueing the job."""
        return self.warn_seconds * 2 / 3

    def parameters(self, chains: Sequence[Sequence[str]], pack: int) -> dict[str, Any]:
        """Return submitit's parameters for jobs that run ``pack`` of these chains (of kinds) each."""
        stages = [[self.resources_of(kind) for kind in chain] for chain in chains]
        resources = [one for chain in stages for one in chain]
        minutes = max((sum(one.minutes for one in chain) for chain in stages), default=0) * pack
        memory = [one.mem_gb for one in resources if one.mem_gb is not None]
        nodes = max((one.nodes for one in resources), default=1)
        cpus = max((one.cpus * one.processes for one in resources), default=1)
        found: dict[str, Any] = {
            "time": minutes or DEFERRED_MINUTES,
            "nodes": nodes,
            "ntasks_per_node": 1,
            "cpus_per_task": cpus,
            "gpus_per_node": max((one.gpus for one in resources), default=0) or None,
            "mem": f"{round(max(memory) * 1024)}MB" if memory else None,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "setup": list(self.setup) or None,
            "array_parallelism": self.array_parallelism,
            "signal_delay_s": self.warn_seconds,
            # Not all versions of srun inherit it from the job, and would bind all threads to one core.
            "srun_args": [f"--cpus-per-task={cpus}"],
            "additional_parameters": dict(_option(text) for text in self.sbatch),
        }
        if nodes > 1:
            # The job starts as one process, which starts the ranks of a training stage as a step of their own.
            found["srun_args"] += ["--ntasks=1", "--nodes=1", "--overlap"]
        return {name: value for name, value in found.items() if value is not None}

    @property
    def processes(self) -> Mapping[str, Processes]:
        """Number of processes per stage and their micro-batch size, by kind of stage."""
        named = self.micro_batch_size if isinstance(self.micro_batch_size, Mapping) else ()
        return {
            kind: Processes(
                count=one.processes,
                nodes=one.nodes,
                sharding=one.sharding,
                micro_batch_size=micro_batch_size_of(self.micro_batch_size, kind),
            )
            for kind, one in ((kind, self.resources_of(kind)) for kind in dict.fromkeys((*self.resources, *named)))
        }

    def cpus(self, chains: Sequence[Sequence[str]]) -> int:
        """Return the number of CPU threads per process of a job that runs these chains."""
        return max((one.cpus for one in self._resources_of(chains)), default=1)

    def device(self, chains: Sequence[Sequence[str]]) -> str:
        """Return the torch device of a job that runs these chains."""
        return "cuda" if any(one.gpus for one in self._resources_of(chains)) else "cpu"

    def _resources_of(self, chains: Sequence[Sequence[str]]) -> list[Resources]:
        return [self.resources_of(kind) for chain in chains for kind in chain]

    def resources_of(self, kind: str) -> Resources:
        """Return the resources of a kind of stage."""
        return self.resources.get(kind) or self.resources[DEFAULT]

    def executor(
        self,
        *,
        sweep: str,
        tracker: TrackerSettings,
        on_event: Callable[[Event], None],
        prepare: Callable[[int | None], None],
    ) -> Executor:
        """Return the executor that submits to this cluster; needs no torch."""
        return SlurmExecutor(
            site=self,
            scheduler=DryRun() if self.dry_run else SlurmClient(),
            sweep=sweep,
            tracker=tracker,
            on_event=on_event,
            prepare=prepare,
            wait=self.wait,
            poll_seconds=self.poll_seconds,
        )


def _option(text: str) -> tuple[str, str | bool]:
    name, equals, value = text.partition("=")
    return name, value if equals else True
