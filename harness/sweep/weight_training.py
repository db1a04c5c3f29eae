"""Trainings of a model's own weights in a plan: what memory they need, and whether the cluster can hold them."""

from collections.abc import Sequence
from typing import NamedTuple

from harness.engine.stage import Stage
from harness.errors import ConfigError, Problem
from harness.execution.cluster import Cluster
from harness.models.saved import KnowsSize
from harness.models.trained_weights import TrainedWeights
from harness.protocols import TrainsWeights, WorksOnShards
from harness.stages.align import Align
from harness.stages.finetune import Finetune
from harness.training.budget import Optimizer
from harness.training.memory import TrainingMemory, training_memory

GIB = 2**30


class WeightTraining(NamedTuple):
    """Stages of a plan that train a model's own weights and need the same memory.

    Attributes:
        kind: of the stages.
        method: the method in their slot; ``sft`` is none.
        model: name of the source of the base.
        memory: on each GPU, without activations; None if the size of the model is not known on this machine.
        shards: processes over which the weights are sharded; 1 if each process holds all of them.
        unshardable: why the training does not work on sharded weights; empty if it does.
    """

    kind: str
    method: str
    model: str
    memory: TrainingMemory | None
    shards: int = 1
    unshardable: str = ""


def weight_trainings(stages: Sequence[Stage], cluster: Cluster) -> list[WeightTraining]:
    """Return the trainings of a model's own weights among stages, each kind of them once.

    Args:
        stages: of a plan.
        cluster: where they run.
    """
    found: dict[WeightTraining, None] = {}
    for stage in stages:
        if not isinstance(stage, Align | Finetune) or not isinstance(stage.adapter, TrainedWeights):
            continue
        if stage.adapter.nothing:
            continue
        shards = cluster.shards(stage.name)
        source = (stage if isinstance(stage, Align) else stage.aligned).base.source
        copies = stage.method.weight_copies if isinstance(stage.method, TrainsWeights) else 0
        modules = None if isinstance(stage.adapter.modules, str) else stage.adapter.modules
        entries = source.parameters() if isinstance(source, KnowsSize) else None
        trained = source.parameters(modules) if isinstance(source, KnowsSize) else None
        memory = (
            None
            if entries is None or trained is None
            else training_memory(
                entries,
                trained,
                copies,
                stage.budget.optimizer or Optimizer.ADAMW,
                shards=shards,
                parts=source.parts() if isinstance(source, KnowsSize) else None,
            )
        )
        method = stage.method.name if stage.method else "sft"
        found[WeightTraining(stage.name, method, source.name, memory, shards, _unshardable(stage))] = None
    return list(found)


def _unshardable(stage: Align | Finetune) -> str:
    """Return why a training does not work on sharded weights; an empty string if it does."""
    if isinstance(stage, Finetune) and stage.update is not None:
        return "directions of estimated gradients (`finetune.update`) are drawn for whole weights"
    if stage.method is not None and not isinstance(stage.method, WorksOnShards):
        return f"`{stage.method.name}` is not shown to compute on sharded weights what it computes on whole ones"
    return ""


def check_weight_trainings(trainings: Sequence[WeightTraining], cluster: Cluster) -> None:
    """Check before anything runs that the cluster can hold and run the trainings of a model's own weights.

    Raises:
        ConfigError: one does not fit on a GPU of the stated size, or does not work on sharded weights.
    """
    problems = []
    for training in trainings:
        where = "align.adapter" if training.kind == "align" else "finetune.fresh"
        if training.shards > 1 and training.unshardable:
            reason = f"`fsdp`, but {training.unshardable}; expected `ddp`, or an adapter in `{where}`"
            problems.append(Problem(f"cluster.resources.{training.kind}.sharding", reason))
        size, memory = cluster.gpu_memory_gib, training.memory
        if size is not None and memory is not None and memory.total > size * GIB:
            reason = (
                f"training the weights of this model with `{training.method}` needs {gib(memory.total)} on each GPU, "
                f"without activations, and a GPU has {gib(int(size * GIB))} (`cluster.gpu_memory_gib`); expected less. "
                "Train an adapter or named modules, choose a smaller `model`, or a method that keeps fewer copies, or "
                "shard the weights over more processes (`sharding: fsdp` in `cluster.resources`)"
            )
            problems.append(Problem(where, reason))
    if problems:
        raise ConfigError(problems)


def gib(size: int) -> str:
    """Return a number of bytes as text, in GiB, or in MiB where that is less than 0.1."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size * 1024 / GIB:.1f} MiB"
