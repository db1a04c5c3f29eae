"""Training shared by the training stages: encode the examples, train with a method, store the adapter or weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.corpora.encode import Encoded, Encoding
from harness.corpora.examples import Example, Role
from harness.corpora.shards import Shards
from harness.corpora.slices import Readable, Slice
from harness.engine.seeding import derive
from harness.engine.stage import StageContext
from harness.errors import DataError
from harness.models.adapter import Lora
from harness.models.trained_weights import TrainedWeights
from harness.protocols import (
    DataRequirement,
    Estimator,
    Product,
    RewritesExamples,
    TrainMethod,
    UsesAlignment,
)
from harness.stages import method_outputs
from harness.stages.federation import federation_facts
from harness.stages.mixed_in import Changes
from harness.stages.tally import MIXED_IN, choice_facts, mean_by_kind, row_facts, tally
from harness.tracking.jsonl import METRICS
from harness.training.budget import Budget
from harness.training.rounds import Rounds

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.corpora.batches import Pool
    from harness.models.loading import ModelRef
    from harness.training.federated import Turn
    from harness.training.trainer import TrainReport

_log = logging.getLogger(__name__)
_NOTICEABLE = 0.1
ADAPTER = "adapter"
"""The folder of the trained adapter inside an artifact."""
WEIGHTS = "weights"
"""The folder of trained weights inside an artifact, see ``harness.models.stored_weights``."""
ROUNDS = "rounds.jsonl"
"""The records of the rounds of a federated training, see ``harness.training.federated``."""


class Federation(NamedTuple):
    """How a training is divided among clients.

    Attributes:
        shards: which client holds each of the stage's examples.
        rounds: the rounds.
        turn: the only clients and the round that are to be trained; None trains all rounds.
    """

    shards: Shards
    rounds: Rounds
    turn: Turn | None = None


def fit(
    ctx: StageContext,
    *,
    weights: ModelRef,
    trainable: Lora | TrainedWeights | None,
    method: TrainMethod | None,
    rows: Sequence[Example],
    kinds: Sequence[str],
    slices: Mapping[Role, Readable | None],
    budget: Budget,
    encoding: Encoding,
    seed: int,
    aligned: Path | None = None,
    sources: Sequence[int] | None = None,
    unfreeze: Callable[[PeftModel], None] | None = None,
    write: Callable[[PeftModel], None] | None = None,
    update: Estimator | None = None,
    federation: Federation | None = None,
) -> TrainReport:
    """Train and write ``adapter/`` or ``weights/``, ``metrics.jsonl`` (one record per logging interval), and outputs.

    A federated training also writes ``rounds.jsonl``, and the fact ``federation``, see ``harness.stages.federation``.
    The turn of some clients writes nothing: what they send is in the report that is returned.

    With several processes each calls this function, and rank 0 writes. Facts: ``steps``; ``rows``, counts by kind (see
    ``tally``); ``final``, the last record of the metrics; ``micro_batch_size``, if batches were split; ``shrunk``, if
    the micro-batch was reduced after running out of memory; ``lost_in_merge``, for each adapter merged into the base
    the norm of its rounding error relative to the adapter's own norm; ``damaged_checkpoints``, step and problem of each
    discarded checkpoint (training then resumed from an earlier one or started over); ``passes``, the numeric switches
    by which the passes differ from those of a CPU (see ``harness.training.passes.Passes``); ``edit``, about what the
    method did to the weights after the last step; ``weights``, about stored weights (see ``stored_weights.write``);
    ``update``, of a run on estimated gradients, its forward passes and the bytes that it kept between steps (see
    ``harness.training.estimates.EstimatingLearner.facts``); ``chosen``, how many examples and tokens of each kind a
    method left out before training; ``row_weights``, the final mean weight of the examples of each kind, of a method
    that has some.

    Args:
        ctx: the stage's context.
        weights: the model to start from; training continues its adapter, if it has one.
        trainable: a new adapter to attach, or the weights to train; None continues the existing adapter.
        method: the defense in the slot; None is plain supervised fine-tuning.
        rows: the stage's own training examples.
        kinds: the kind of each of them, see ``tally``.
        slices: the examples available to the method, by role.
        budget: hyperparameters of the training run.
        encoding: prompt template and tokenization.
        seed: the stage's seed, from which the seeds of adapter initialization, data order and sampled batches derive.
        aligned: folder of the aligned adapter, for methods that use the change of the weights by alignment; None in
            the alignment itself.
        sources: the expert that each of the rows is meant for, for the training of routed experts.
        unfreeze: makes further parameters of the model trainable.
        write: stores what else was trained than the adapter.
        update: estimates gradients from forward passes; None computes them.
        federation: the clients that train, and their rounds; None trains on all examples in one place.

    Raises:
        DataError: examples that the training needs are missing, or none is left after encoding.
    """
    from harness.models import adapter, trained_weights
    from harness.models.compiled import use_cache
    from harness.models.loading import loaded_model
    from harness.training.distributed import leave
    from harness.training.federated import train_rounds, train_turn
    from harness.training.fsdp import gathered
    from harness.training.trainer import train

    if ctx.compiled is not None and not ctx.device.startswith("cpu"):
        use_cache(ctx.compiled)
    sharded = ctx.sharding == "fsdp"
    # A base that will be sharded does not have to fit onto the device as a whole; sharding it is irreversible.
    own_weights = isinstance(trainable, TrainedWeights)
    with loaded_model(weights, ctx.memory, "cpu" if sharded else ctx.device, for_good=sharded or own_weights) as loaded:
        model = loaded.model
        if isinstance(trainable, TrainedWeights):
            trained_weights.unfreeze(model, trainable)
        elif trainable is not None:
            model = adapter.attach(model, trainable, seed=adapter_seed(seed))
        if unfreeze is not None:
            unfreeze(model)
        needs = method.needs if method else ()
        own_rows = method.rewrite(rows, loaded.tokenizer) if isinstance(method, RewritesExamples) else rows
        own = tally(loaded.tokenizer, encoding, own_rows, kinds, sources)
        mixed = encode_mixed(
            loaded.tokenizer, needs, slices, encoding, ctx.facts, changed_by=Changes(method, rows, derive(seed, "rows"))
        )
        trained = [*own.rows, *mixed]
        if loaded.lost:
            ctx.facts["lost_in_merge"] = list(loaded.lost)
        mixed_dropped = sum(ctx.facts[f"{need.role}_rows"]["dropped"] for need in needs if need.batch_size is None)
        ctx.facts["rows"] = row_facts(own, mixed, mixed_dropped, None if federation else budget)
        run: Callable[..., TrainReport] = partial(train, rows=trained, update=update)
        if federation:
            owners = [owner for owner, kept in zip(federation.shards.owners, own.kept, strict=True) if kept]
            clients = federation.shards._replace(owners=owners)
            run = partial(train_turn, turn=federation.turn) if federation.turn else train_rounds
            run = partial(run, rows=own.rows, mixed=mixed, shards=clients, rounds=federation.rounds)
        report = run(
            model,
            method=method,
            pools=pools(loaded.tokenizer, needs, slices, encoding, ctx.facts),
            alignment=alignment_for(method, aligned),
            budget=budget,
            seed=seed,
            pad_id=loaded.tokenizer.pad_token_id,
            work=ctx.work,
            tracker=ctx.tracker,
            device=ctx.device,
            sharded=sharded,
            micro_batch_size=ctx.micro_batch_size,
            shrink=ctx.shrink,
            stop=ctx.stop,
        )
        shards = gathered(model) if sharded and own_weights else None
        leave()
        if ctx.rank == 0 and report.played is None:
            store(ctx, model, weights, shards)
            if write is not None:
                write(model)
            method_outputs.write(report.method_outputs, model, ctx.out)
    _record(ctx, report, trained, [*own.kind_of, *[MIXED_IN] * len(mixed)])
    if federation and federation.turn is None:
        record_rounds(ctx, federation.shards, report.history, report.rounds)
    elif ctx.rank == 0 and report.played is None:
        _write_history(ctx.out, report.history)
    return report


def record_rounds(
    ctx: StageContext,
    shards: Shards,
    history: Sequence[Mapping[str, float]],
    rounds: Sequence[Mapping[str, Any]],
) -> None:
    """Write the history and the records of a federation's rounds, and the facts about them."""
    ctx.facts["federation"] = federation_facts(shards, rounds)
    if ctx.rank == 0:
        _write_history(ctx.out, history)
        write_lines(ctx.out / ROUNDS, rounds)


def _record(ctx: StageContext, report: TrainReport, rows: Sequence[Encoded], kind_of: Sequence[str]) -> None:
    """Record the facts about a training run.

    Args:
        ctx: the stage's context.
        report: of the run.
        rows: the examples that it was given, mixed-in ones included.
        kind_of: the kind of each of them.
    """
    from harness.training.checkpoint import discarded

    ctx.facts.update(steps=report.steps, final=dict(report.metrics))
    if damaged := discarded(ctx.work):
        ctx.facts["damaged_checkpoints"] = damaged
    if report.chosen is not None:
        ctx.facts["chosen"] = choice_facts(report.chosen, rows, kind_of)
        ctx.facts["rows"]["trained"] = len(report.chosen.rows)
        kind_of = [kind_of[place] for place, _ in report.chosen.rows]
    if report.row_weights:
        ctx.facts["row_weights"] = mean_by_kind(report.row_weights, kind_of)
    for name in ("edit", "update", "passes"):
        if found := getattr(report, name):
            ctx.facts[name] = dict(found)
    record_micro_batch(ctx, report.rows_at_once)


def keep(ctx: StageContext, *, weights: ModelRef, trainable: Lora | TrainedWeights | None, seed: int) -> None:
    """Write that from which training would start and an empty history: there is nothing to train on, or to train.

    A new adapter changes nothing, so either way the model is that of ``weights``. Facts: ``steps``, 0;
    ``lost_in_merge`` and ``weights``, see ``fit``.

    Args:
        ctx: the stage's context.
        weights: the model to keep.
        trainable: a new adapter to attach, or the weights that training would change; None keeps the existing adapter.
        seed: the stage's seed.
    """
    from harness.models import adapter
    from harness.models.loading import loaded_model

    if ctx.rank != 0:
        return
    if not (isinstance(trainable, TrainedWeights) and trainable.nothing):
        with loaded_model(weights, ctx.memory, ctx.device) as loaded:
            fresh = trainable if isinstance(trainable, Lora) else None
            store(ctx, adapter.attach(loaded.model, fresh, seed=adapter_seed(seed)) if fresh else loaded.model, weights)
            if loaded.lost:
                ctx.facts["lost_in_merge"] = list(loaded.lost)
    ctx.facts["steps"] = 0
    _write_history(ctx.out, ())


def place(ctx: StageContext, *, weights: ModelRef, trainable: Lora | None, seed: int, values: Tensor) -> None:
    """Write the adapter that has given values, which a federation trained in other stages.

    Args:
        ctx: the stage's context.
        weights: the model from which that training started.
        trainable: the new adapter that was attached; None if the existing one was trained.
        seed: the stage's seed.
        values: of all trained parameters, as one vector, in the order of ``named_parameters``.
    """
    import torch

    from harness.models import adapter
    from harness.models.loading import loaded_model

    if ctx.rank != 0:
        return
    with loaded_model(weights, ctx.memory, ctx.device) as loaded:
        model = adapter.attach(loaded.model, trainable, seed=adapter_seed(seed)) if trainable else loaded.model
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        with torch.no_grad():
            torch.nn.utils.vector_to_parameters(values.to(trained[0].device), trained)
        store(ctx, model, weights)


def store(
    ctx: StageContext,
    model: PreTrainedModel | PeftModel,
    weights: ModelRef,
    whole: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a trained model's adapter, or without one its weights as their difference from the base.

    Args:
        ctx: the stage's context.
        model: the trained model.
        weights: the model from which training started.
        whole: the weights of a model without an adapter by parameter name, if the model's own are sharded.
    """
    from peft import PeftModel

    from harness.models import adapter, stored_weights
    from harness.models.loading import ModelRef, weights_of

    if isinstance(model, PeftModel):
        adapter.save(model, ctx.out / ADAPTER)
        return
    base = weights_of(ModelRef(base_key=weights.base_key, base=weights.base))
    trained = dict(model.named_parameters()) if whole is None else whole
    ctx.facts["weights"] = facts = stored_weights.write(trained, base, ctx.out / WEIGHTS)
    if facts["lost"] > _NOTICEABLE:
        _log.warning(
            "storing weights in the number format of the base lost %.0f %% of their training to rounding; use a "
            "float32 base to avoid this",
            100 * facts["lost"],
        )


def trained_model(start: ModelRef, trainable: Lora | TrainedWeights | None, artifact: Path) -> ModelRef:
    """Return the model that a training stage stored.

    Args:
        start: the model from which training started.
        trainable: the adapter or the weights that were trained.
        artifact: the stage's artifact.
    """
    from harness.models.loading import ModelRef

    if not isinstance(trainable, TrainedWeights):
        return replace(start, adapter=artifact / ADAPTER)
    if trainable.nothing:
        return start
    return ModelRef(base_key=start.base_key, base=start.base, weights=artifact / WEIGHTS)


def alignment_for(method: object, aligned: Path | None) -> dict[str, Product]:
    """Return the change of the weights by alignment, by layer, for a method that asks for it; empty for others.

    Args:
        method: the defense in the slot, or None.
        aligned: folder of the aligned adapter; None in the alignment itself.

    Raises:
        ModelError: the folder contains no readable adapter.
    """
    from harness.models import adapter

    if aligned is not None and isinstance(method, UsesAlignment):
        return {layer: Product(b, a) for layer, (b, a) in adapter.products(aligned).items()}
    return {}


def _write_history(out: Path, history: Sequence[Mapping[str, float]]) -> None:
    write_lines(out / METRICS, history)


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write records as JSON, one per line."""
    with path.open("w", encoding="utf-8") as file:
        # Sorted like those restored from a checkpoint, so that a resumed run writes the same bytes.
        file.writelines(json.dumps(row, sort_keys=True) + "\n" for row in records)


def record_micro_batch(ctx: StageContext, rows_at_once: int | None) -> None:
    """Record the micro-batch size in the facts if batches were split, and the factor by which it was reduced."""
    if rows_at_once:
        ctx.facts["micro_batch_size"] = rows_at_once
    if ctx.shrink > 1:
        ctx.facts["shrunk"] = {"factor": ctx.shrink, "micro_batch_size": rows_at_once}


def adapter_seed(seed: int) -> int:
    """Return the seed of a new adapter's initialization, for a training stage with the given seed."""
    return derive(seed, "adapter")


def pools(
    tokenizer: PreTrainedTokenizerBase,
    needs: Sequence[DataRequirement],
    slices: Mapping[Role, Readable | None],
    encoding: Encoding,
    facts: dict[str, Any],
) -> dict[Role, Pool]:
    """Encode the examples that a method samples batches from, and record their counts in the facts.

    Requirements without a batch size are skipped, see ``encode_mixed``, and so is what is sampled from the stage's own.

    Raises:
        DataError: a required role has no slice, or its examples cannot be read.
    """
    drawn = {}
    for need in needs:
        if need.batch_size is None or need.own:
            continue
        pool, dropped = _pool(tokenizer, need, need.batch_size, _slice_for(need, slices), encoding)
        facts[f"{need.role}_rows"] = {
            "drawn_from": len(pool.rows),
            "dropped": dropped,
            **_cut(tokenizer, encoding, pool.rows),
        }
        drawn[need.role] = pool
    return drawn


def encode_mixed(
    tokenizer: PreTrainedTokenizerBase,
    needs: Sequence[DataRequirement],
    slices: Mapping[Role, Readable | None],
    encoding: Encoding,
    facts: dict[str, Any],
    *,
    changed_by: Changes | None = None,
) -> list[Encoded]:
    """Encode the examples that a method mixes into the stage's own, and record their counts in the facts.

    Args:
        tokenizer: the model's tokenizer.
        needs: the method's requirements; those with a batch size are skipped.
        slices: the examples available to the method, by role.
        encoding: prompt template and tokenization.
        facts: receives the counts.
        changed_by: what the method does to these examples; None is nothing.

    Raises:
        DataError: a required role has no slice, or its examples cannot be read.
    """
    mixed: list[Encoded] = []
    for need in needs:
        if need.batch_size is not None:
            continue
        origin = _slice_for(need, slices)
        assert isinstance(origin, Slice), "what is mixed in comes from the corpus"
        encoded = (changed_by or Changes()).encoded(tokenizer, encoding, origin, paired=need.paired)
        facts[f"{need.role}_rows"] = {
            "mixed_in": len(encoded.rows),
            "dropped": encoded.dropped,
            **_cut(tokenizer, encoding, encoded.rows),
        }
        mixed += encoded.rows
    return mixed


def _cut(tokenizer: PreTrainedTokenizerBase, encoding: Encoding, rows: Sequence[Encoded]) -> dict[str, int]:
    cut = encoding.truncated_count(tokenizer, rows)
    return {"cut": cut} if cut else {}


def _slice_for(need: DataRequirement, slices: Mapping[Role, Readable | None]) -> Readable:
    origin = slices.get(need.role)
    if origin is None:
        raise DataError(f"the method needs examples of the role `{need.role}`, which this slot does not provide")
    return origin


def _pool(
    tokenizer: PreTrainedTokenizerBase, need: DataRequirement, batch_size: int, origin: Readable, encoding: Encoding
) -> tuple[Pool, int]:
    """Return the encoded examples of a requirement and the number dropped; a pair is dropped if either part is."""
    from harness.corpora.batches import Pool

    if not need.paired:
        encoded = encoding.encode_all(tokenizer, origin.examples())
        return Pool(rows=encoded.rows, batch_size=batch_size, disjoint_batches=need.disjoint_batches), encoded.dropped
    assert isinstance(origin, Slice), "a corpus has the refusals of its prompts"
    rows = encoding.encode_each(tokenizer, origin.examples())
    pairs = zip(rows, encoding.encode_each(tokenizer, origin.refusals()), strict=True)
    kept = [(row, partner) for row, partner in pairs if row and partner]
    partners = [partner for _, partner in kept]
    pool = Pool([row for row, _ in kept], batch_size, partners=partners, disjoint_batches=need.disjoint_batches)
    return pool, len(rows) - len(kept)
