"""A model ready for a training run: on its device or sharded, with a learner, and passes that suit its batches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from torch.nn import Module
from transformers import TrainingArguments

from harness.corpora.batches import Pool
from harness.corpora.encode import Encoded
from harness.corpora.examples import Role
from harness.protocols import Product
from harness.training.budget import Budget
from harness.training.distributed import rank, world_size
from harness.training.fsdp import shard
from harness.training.learner import CausalLearner
from harness.training.passes import Passes, passes_on, usual_rows
from harness.training.pieces import rows_at_once


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A model ready for a training run.

    Attributes:
        learner: the model as methods see it.
        passes: how its forward passes run.
        micro_batch: the micro-batch size of each process; None if batches are not split.
    """

    learner: CausalLearner
    passes: Passes
    micro_batch: int | None


def placed(
    model: Module,
    arguments: TrainingArguments,
    *,
    rows: Sequence[Encoded],
    pools: Mapping[Role, Pool],
    alignment: Mapping[str, Product] | None,
    budget: Budget,
    sharded: bool,
    micro_batch_size: int | None,
    shrink: int,
) -> Placed:
    """Put a model on the device of a run, in training mode.

    Args:
        model: as for ``harness.training.trainer.train``.
        arguments: of ``Trainer``; creating them has initialized the process group.
        rows: everything that is trained on.
        pools: examples and batch size of every role.
        alignment: as for ``train``.
        budget: hyperparameters of the run.
        sharded: as for ``train``.
        micro_batch_size: as for ``train``.
        shrink: as for ``train``.

    Raises:
        ModelError: the model cannot be trained or sharded, or a micro-batch cannot be divided further.
        ConfigError: the global batch has fewer examples than there are processes.
    """
    shares = [math.ceil(pool.batch_size / world_size()) for pool in pools.values()]
    micro_batch = rows_at_once(max(budget.share(world_size()), *shares, 0), micro_batch_size, shrink)
    if sharded:
        shard(model, arguments.device)
    else:
        model.to(arguments.device)
    model.train()
    passes = passes_on(
        model,
        arguments.device.type,
        precision=budget.precision,
        longest=_longest(rows, pools),
        rows=usual_rows(_own_sizes(budget, pools), micro_batch),
        sharded=sharded,
    )
    learner = CausalLearner(
        model, precision=budget.precision, rows_at_once=micro_batch, passes=passes, alignment=alignment
    )
    return Placed(learner=learner, passes=passes, micro_batch=micro_batch)


def _longest(rows: Sequence[Encoded], pools: Mapping[Role, Pool]) -> int:
    """Return the most tokens that an example of the run has."""
    everything = chain(rows, *((*pool.rows, *pool.partners) for pool in pools.values()))
    return max(len(row.input_ids) for row in everything)


def _own_sizes(budget: Budget, pools: Mapping[Role, Pool]) -> set[int]:
    """Return how many examples of full batches this process receives."""
    sizes = [budget.batch_size, *(pool.batch_size for pool in pools.values())]
    return {math.ceil((size - rank()) / world_size()) for size in sizes}
