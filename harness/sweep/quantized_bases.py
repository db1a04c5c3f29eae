"""Bases in four bits in a plan: the memory that they take, and whether the resources of their stages suit them."""

from collections.abc import Sequence
from typing import NamedTuple

from harness.engine.stage import Stage, lineage
from harness.errors import ConfigError, Problem
from harness.execution.cluster import Cluster
from harness.models.quantized import MayBeQuantized, form_of
from harness.stages.base import Base


class QuantizedBase(NamedTuple):
    """A base in four bits that stages of a plan load.

    Attributes:
        model: name of the source.
        form: of its matrices.
        loaded_bytes: of all weights in memory; None if the model is not on this machine yet.
    """

    model: str
    form: str
    loaded_bytes: int | None


def quantized_bases(pending: Sequence[Stage]) -> list[QuantizedBase]:
    """Return the bases in four bits that stages load, each once."""
    sources = {
        stage.key: stage.source
        for stage in lineage(tuple(pending))
        if isinstance(stage, Base) and isinstance(stage.source, MayBeQuantized)
    }
    return [
        QuantizedBase(source.name, source.quantized.value, source.loaded_bytes())
        for source in sources.values()
        if source.quantized is not None
    ]


def check_quantized_bases(pending: Sequence[Stage], cluster: Cluster) -> None:
    """Check that no base in four bits is to be sharded.

    Raises:
        ConfigError: one is.
    """
    problems: dict[Problem, None] = {}
    for stage in pending:
        if cluster.shards(stage.name) == 1:
            continue
        forms = {form_of(base.source) for base in lineage((stage,)) if isinstance(base, Base)} - {None}
        for form in forms:
            reason = (
                "`fsdp` shards matrices, but those of the base are packed in blocks "
                f"(`model.source.quantized={form}`); expected `ddp`: a base in four bits is small enough for every GPU"
            )
            problems[Problem(f"cluster.resources.{stage.name}.sharding", reason)] = None
    if problems:
        raise ConfigError(list(problems))
