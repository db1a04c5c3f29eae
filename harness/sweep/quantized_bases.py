"""4-bit bases in a plan: the memory that they need, and whether the cluster's settings suit them."""

from collections.abc import Sequence
from typing import NamedTuple

from harness.engine.stage import Stage, lineage
from harness.errors import ConfigError, Problem
from harness.execution.cluster import Cluster
from harness.models.quantized import MayBeQuantized, form_of
from harness.stages.base import Base


class QuantizedBase(NamedTuple):
    """A 4-bit base that stages of a plan load.

    Attributes:
        model: name of the source.
        form: how its matrices are quantized.
        loaded_bytes: bytes of all weights in memory; None if the model is not on this machine yet.
    """

    model: str
    form: str
    loaded_bytes: int | None


def quantized_bases(pending: Sequence[Stage]) -> list[QuantizedBase]:
    """Return the 4-bit bases that stages load, each once."""
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
    """Check that no 4-bit base is to be sharded.

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
                f"`fsdp` cannot shard the packed matrices of a 4-bit base (`model.source.quantized={form}`); "
                "expected `ddp`, with the whole base on every GPU"
            )
            problems[Problem(f"cluster.resources.{stage.name}.sharding", reason)] = None
    if problems:
        raise ConfigError(list(problems))
