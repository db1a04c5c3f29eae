"""Slurm, as a setting: what each kind of stage is given, and the site's rules. Nothing here is identity."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

from harness.engine.checks import counts, not_negative, positive
from harness.engine.stage import Stage
from harness.engine.tracker import TrackerSettings
from harness.errors import Problem
from harness.execution.cluster import micro_batch_kind_problems, micro_batch_problems, micro_batch_size_of
from harness.execution.executor import Event, Executor
from harness.execution.ranks import DEFAULT, Processes
from harness.slurm.client import Slurm as Scheduler
from harness.slurm.dry_run import DryRun
from harness.slurm.executor import SlurmExecutor

CONTINUATION_MINUTES = 10
"""Time of a job that submits what the cap on jobs left."""


@final
@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a stage of one kind is given.

    Attributes:
        minutes: the time limit; a job that runs several stages is given their sum.
        cpus: cores of each process.
        mem_gb: host memory of a node; null leaves it to the site.
        gpus: of a node; 0 is a CPU job.
        processes: of a node, that share a training; one a GPU, usually.
        nodes: that share a training.
        sharding: ``ddp`` gives every process the whole base model, ``fsdp`` a share of it.
        pack: how many lines of stages that begin with this kind run in one job, one after another; the base model is
            loaded once.
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
        whole = ("minutes", "cpus", "processes", "nodes", "pack")
        found = [*counts(self, *whole), *not_negative(self, "gpus"), *positive(self, "mem_gb")]
        if self.processes > self.gpus > 0:
            found.append(
                Problem("processes", f"{self.processes} cannot share {self.gpus} GPUs; expected one GPU for each")
            )
        return found


@final
@dataclass(frozen=True, kw_only=True)
class Slurm:
    """A Slurm cluster; satisfies ``execution.cluster.Cluster`` and ``slurm.site.Site``.

    Attributes:
        partition: where jobs go; null leaves it to the site. So with ``account``, ``qos`` and ``constraint``.
        account: who pays.
        qos: quality of service.
        constraint: features that a node must have.
        sbatch: further parameters of sbatch, as ``["mail-type=FAIL", "exclusive"]``.
        setup: lines of shell before Python starts, as ``["module load cuda"]``.
        python: the command that starts Python on a node, as a container's; null is the one that submits.
        resources: what each kind of stage is given, by its name; ``default`` is for the kinds that are not named.
        joins: kinds that go on in the job of what they read, if nothing else continues it; null leaves it to the stages
            (``Stage.fuses``).
        fans: kinds of which several may do so; null leaves it to the stages (``Stage.fuses_siblings``).
        array_limit: elements of an array, at most (``MaxArraySize`` of the site, less one).
        array_parallelism: elements of an array that run at one time.
        job_cap: jobs of yours in the queue at one time; null if the site has no such limit.
        requeues: how often a job may start again after its time limit, a preemption or the death of its node.
        warn_seconds: how long before its time limit Slurm warns a job, which then writes a checkpoint.
        micro_batch_size: rows that each process takes through the model at once: a number, or one for each kind of
            stage; null is all of its share of a batch.
        vllm_python: Python interpreter of an environment that has vLLM, for ``evaluation.decoding.engine=vllm``.
        on_oom: ``fail`` leaves a stage that ran out of memory as it is when it is retried, ``shrink`` takes half as
            many rows through the model at once, which changes no result, and says so in the report.
        allow_drift: whether jobs may run other code than that which submitted them.
        wait: stay until everything has run, and return the results.
        dry_run: write the scripts and submit nothing.
        poll_seconds: how often a waiting run looks at the queue.
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
    vllm_python: str | None = None
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
            *positive(self, "poll_seconds"),
        ]
        found += micro_batch_problems(self.micro_batch_size)
        if self.job_cap is not None and self.job_cap < 3:
            found.append(Problem("job_cap", f"{self.job_cap} leaves no room; expected at least 3, or null"))
        short = [kind for kind, one in self.resources.items() if 60 * one.minutes <= self.warn_seconds]
        if short:
            found.append(
                Problem(
                    "warn_seconds",
                    f"{self.warn_seconds} is not less than the time limit of {', '.join(short)}; such a "
                    "job would be warned as it starts",
                )
            )
        wrong = [text for text in self.sbatch if not re.fullmatch(r"[a-z][a-z-]*(=.+)?", text)]
        found += [Problem("sbatch", f"{text!r} is no parameter; expected `name=value` or `name`") for text in wrong]
        if self.wait and self.dry_run:
            found.append(Problem("wait", "nothing is submitted with `dry_run`, so there is nothing to wait for"))
        return found

    def kind_problems(self, kinds: Mapping[str, type[Stage]]) -> list[Problem]:
        """Return which settings name a kind of stage that there is not, or ask of one what it cannot do."""
        named = [("resources", kind) for kind in self.resources if kind != DEFAULT]
        named += [(name, kind) for name in ("joins", "fans") for kind in getattr(self, name) or ()]
        found = [
            Problem(name, f"`{kind}` is no kind of stage; expected some of {', '.join(sorted(kinds))}")
            for name, kind in named
            if kind not in kinds
        ]
        if DEFAULT not in self.resources and (lacking := [kind for kind in kinds if kind not in self.resources]):
            found.append(Problem("resources", f"nothing is given to {', '.join(lacking)}; name them, or `{DEFAULT}`"))
        found += micro_batch_kind_problems(self.micro_batch_size, kinds)
        return found + [
            Problem(f"resources.{kind}.{name}", f"{count}, but such a stage runs in one process; expected 1")
            for kind, one in self.resources.items()
            for name, count in (("processes", one.processes), ("nodes", one.nodes))
            if count > 1 and kind in kinds and not kinds[kind].parallel
        ]

    @property
    def pack(self) -> Mapping[str, int]:
        """How many lines a job holds, by the kind that they begin with."""
        return {kind: one.pack for kind, one in self.resources.items()}

    @property
    def gpus(self) -> Mapping[str, int]:
        """How many GPUs a stage is given, by kind."""
        return {kind: one.gpus * one.nodes for kind, one in self.resources.items()}

    @property
    def grace_seconds(self) -> float:
        """How long a stage may go on after the warning: the rest is for the way back into the queue."""
        return self.warn_seconds * 2 / 3

    def parameters(self, lines: Sequence[Sequence[str]], pack: int) -> dict[str, Any]:
        """Return submitit's parameters for jobs that run so many of these lines of kinds each."""
        stages = [[self.given(kind) for kind in line] for line in lines]
        given = [one for line in stages for one in line]
        minutes = max((sum(one.minutes for one in line) for line in stages), default=0) * pack
        memory = [one.mem_gb for one in given if one.mem_gb is not None]
        nodes = max((one.nodes for one in given), default=1)
        cpus = max((one.cpus * one.processes for one in given), default=1)
        found: dict[str, Any] = {
            "time": minutes or CONTINUATION_MINUTES,
            "nodes": nodes,
            "ntasks_per_node": 1,
            "cpus_per_task": cpus,
            "gpus_per_node": max((one.gpus for one in given), default=0) or None,
            "mem": f"{round(max(memory) * 1024)}MB" if memory else None,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "setup": list(self.setup) or None,
            "array_parallelism": self.array_parallelism,
            "signal_delay_s": self.warn_seconds,
            # srun does not take it over from the job in all versions, and would then bind everything to one core.
            "srun_args": [f"--cpus-per-task={cpus}"],
            "additional_parameters": dict(_parameter(text) for text in self.sbatch),
        }
        if nodes > 1:
            # The job's own process is one; it starts the others of a training as a step of their own.
            found["srun_args"] += ["--ntasks=1", "--nodes=1", "--overlap"]
        return {name: value for name, value in found.items() if value is not None}

    @property
    def processes(self) -> Mapping[str, Processes]:
        """How many processes share a stage and how many rows they take at once, by its kind."""
        named = self.micro_batch_size if isinstance(self.micro_batch_size, Mapping) else ()
        return {
            kind: Processes(
                count=one.processes,
                nodes=one.nodes,
                sharding=one.sharding,
                micro_batch_size=micro_batch_size_of(self.micro_batch_size, kind),
            )
            for kind, one in ((kind, self.given(kind)) for kind in dict.fromkeys((*self.resources, *named)))
        }

    def cpus(self, lines: Sequence[Sequence[str]]) -> int:
        """Return how many CPU threads each process of a job that runs these lines of kinds uses."""
        return max((one.cpus for one in self._given(lines)), default=1)

    def device(self, lines: Sequence[Sequence[str]]) -> str:
        """Return the torch device of such a job."""
        return "cuda" if any(one.gpus for one in self._given(lines)) else "cpu"

    def _given(self, lines: Sequence[Sequence[str]]) -> list[Resources]:
        return [self.given(kind) for line in lines for kind in line]

    def given(self, kind: str) -> Resources:
        """Return what stages of a kind are given."""
        return self.resources.get(kind) or self.resources[DEFAULT]

    def executor(
        self,
        *,
        sweep: str,
        tracker: TrackerSettings,
        on_event: Callable[[Event], None],
        prepare: Callable[[int | None], None],
    ) -> Executor:
        """Return the executor that submits to this cluster; torch is not needed for it."""
        return SlurmExecutor(
            site=self,
            scheduler=DryRun() if self.dry_run else Scheduler(),
            sweep=sweep,
            tracker=tracker,
            on_event=on_event,
            prepare=prepare,
            wait=self.wait,
            poll_seconds=self.poll_seconds,
        )


def _parameter(text: str) -> tuple[str, str | bool]:
    name, equals, value = text.partition("=")
    return name, value if equals else True
