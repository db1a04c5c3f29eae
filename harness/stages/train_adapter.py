"""Fit: what the training stages share. Rows are encoded, a method trains an adapter, the adapter is stored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.corpora.encode import Encoded, Encoding, cut_in
from harness.corpora.examples import Example, Role
from harness.corpora.slices import Slice
from harness.engine.seeding import derive
from harness.engine.stage import StageContext
from harness.errors import DataError
from harness.models.adapter import Lora
from harness.protocols import DataRequirement, TrainMethod
from harness.stages import method_outputs
from harness.stages.tally import described, tally
from harness.tracking.jsonl import METRICS
from harness.training.budget import Budget

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.corpora.batches import Pool
    from harness.models.loading import ModelRef
    from harness.training.trainer import TrainReport

ADAPTER = "adapter"
"""The folder of the trained adapter inside an artifact."""


def fit(
    ctx: StageContext,
    *,
    weights: ModelRef,
    fresh: Lora | None,
    method: TrainMethod | None,
    rows: Sequence[Example],
    kinds: Sequence[str],
    slices: Mapping[Role, Slice | None],
    budget: Budget,
    encoding: Encoding,
    seed: int,
) -> None:
    """Train and write ``adapter/``, ``metrics.jsonl`` (one row per logging interval), and what the method hands over.

    Several processes may share the run: each calls this, and the first writes. Facts: steps; counts of rows by kind,
    see ``tally``; the last row of the curve; ``micro_batch_size``, the rows of a piece, where batches were cut; by what
    they were ``shrunk`` after memory ran out; ``lost_in_merge``, for each adapter merged into a base the norm of what
    rounding took from it, as a share of its own norm; ``damaged_checkpoints``, the step and the problem of each that
    was discarded, so that the training went on from an earlier one or from the start.

    Args:
        ctx: of the stage.
        weights: the model to start from; its adapter, if it has one, is trained on.
        fresh: attach a new adapter of this size instead.
        method: the defense in the slot; None trains plainly.
        rows: the stage's own rows.
        kinds: what each of them is, to be counted by.
        slices: where the rows come from that the method draws.
        budget: how long and how fast.
        encoding: how text becomes tokens.
        seed: of this stage: adapter, order of rows and draws have generators of their own, named from it.

    Raises:
        DataError: a row that the training needs is missing, or none is left after encoding.
    """
    from harness.models import adapter
    from harness.models.loading import loaded_model
    from harness.training.checkpoint import discarded
    from harness.training.distributed import leave
    from harness.training.trainer import train

    sharded = ctx.sharding == "fsdp"
    # A base that is sharded need not fit onto the device in full, and never becomes whole again.
    with loaded_model(weights, ctx.memory, "cpu" if sharded else ctx.device, for_good=sharded) as lent:
        model = adapter.attach(lent.model, fresh, seed=adapter_seed(seed)) if fresh else lent.model
        needs = method.needs if method else ()
        own = tally(lent.tokenizer, encoding, rows, kinds)
        mixed = mixed_in(lent.tokenizer, needs, slices, encoding, ctx.facts)
        trained = [*own.rows, *mixed]
        if lent.lost:
            ctx.facts["lost_in_merge"] = list(lent.lost)
        unmixed = sum(ctx.facts[f"{need.role}_rows"]["dropped"] for need in needs if need.batch_size is None)
        ctx.facts["rows"] = described(own, mixed, unmixed, budget)
        report = train(
            model,
            method=method,
            rows=trained,
            pools=pools(lent.tokenizer, needs, slices, encoding, ctx.facts),
            budget=budget,
            seed=seed,
            pad_id=lent.tokenizer.pad_token_id,
            work=ctx.work,
            tracker=ctx.tracker,
            device=ctx.device,
            sharded=sharded,
            micro_batch_size=ctx.micro_batch_size,
            shrink=ctx.shrink,
            stop=ctx.stop,
        )
        leave()
        if ctx.rank == 0:
            adapter.save(model, ctx.out / ADAPTER)
            method_outputs.write(report.outputs, model, ctx.out)
    ctx.facts.update(steps=report.steps, final=dict(report.metrics))
    if damaged := discarded(ctx.work):
        ctx.facts["damaged_checkpoints"] = damaged
    tell_pieces(ctx, report.rows_at_once)
    if ctx.rank == 0:
        _write_history(ctx.out, report)


def _write_history(out: Path, report: TrainReport) -> None:
    with (out / METRICS).open("w", encoding="utf-8") as file:
        # Sorted, as rows are that come back from a checkpoint: a resumed run writes the same bytes.
        file.writelines(json.dumps(row, sort_keys=True) + "\n" for row in report.history)


def tell_pieces(ctx: StageContext, rows_at_once: int | None) -> None:
    """Note in the facts how many rows went through the model at once, if batches were cut, and why."""
    if rows_at_once:
        ctx.facts["micro_batch_size"] = rows_at_once
    if ctx.shrink > 1:
        ctx.facts["shrunk"] = {"factor": ctx.shrink, "micro_batch_size": rows_at_once}


def adapter_seed(seed: int) -> int:
    """Return the seed of the fresh adapter of a training stage with the given seed."""
    return derive(seed, "adapter")


def pools(
    tokenizer: PreTrainedTokenizerBase,
    needs: Sequence[DataRequirement],
    slices: Mapping[Role, Slice | None],
    encoding: Encoding,
    facts: dict[str, Any],
) -> dict[Role, Pool]:
    """Encode the rows that a method draws; their counts go into the facts. Rows to be mixed in are passed over.

    Raises:
        DataError: a needed role has no slice, or no row of it is left after encoding.
    """
    drawn = {}
    for need in needs:
        if need.batch_size is None:
            continue
        pool, dropped = _pool(tokenizer, need, need.batch_size, _offered(need, slices), encoding)
        facts[f"{need.role}_rows"] = {"drawn_from": len(pool.rows), "dropped": dropped, **_cut(tokenizer, pool.rows)}
        drawn[need.role] = pool
    return drawn


def mixed_in(
    tokenizer: PreTrainedTokenizerBase,
    needs: Sequence[DataRequirement],
    slices: Mapping[Role, Slice | None],
    encoding: Encoding,
    facts: dict[str, Any],
) -> list[Encoded]:
    """Encode the rows that a method mixes into the stage's own; their counts go into the facts.

    Raises:
        DataError: a needed role has no slice.
    """
    mixed: list[Encoded] = []
    for need in needs:
        if need.batch_size is not None:
            continue
        encoded = encoding.encode_all(tokenizer, _offered(need, slices).examples())
        facts[f"{need.role}_rows"] = {
            "mixed_in": len(encoded.rows),
            "dropped": encoded.dropped,
            **_cut(tokenizer, encoded.rows),
        }
        mixed += encoded.rows
    return mixed


def _cut(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Encoded]) -> dict[str, int]:
    cut = cut_in(tokenizer, rows)
    return {"cut": cut} if cut else {}


def _offered(need: DataRequirement, slices: Mapping[Role, Slice | None]) -> Slice:
    origin = slices.get(need.role)
    if origin is None:
        raise DataError(f"the method needs rows of the role `{need.role}`, which this slot does not offer")
    return origin


def _pool(
    tokenizer: PreTrainedTokenizerBase, need: DataRequirement, batch_size: int, origin: Slice, encoding: Encoding
) -> tuple[Pool, int]:
    """Return the encoded rows of a need, and how many were dropped; of a pair both go if one does not fit."""
    from harness.corpora.batches import Pool

    if not need.paired:
        encoded = encoding.encode_all(tokenizer, origin.examples())
        return Pool(rows=encoded.rows, batch_size=batch_size, disjoint_batches=need.disjoint_batches), encoded.dropped
    rows = encoding.encode_each(tokenizer, origin.examples())
    pairs = zip(rows, encoding.encode_each(tokenizer, origin.refusals()), strict=True)
    kept = [(row, partner) for row, partner in pairs if row and partner]
    partners = [partner for _, partner in kept]
    pool = Pool([row for row, _ in kept], batch_size, partners=partners, disjoint_batches=need.disjoint_batches)
    return pool, len(rows) - len(kept)
