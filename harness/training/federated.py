"""A federated training run: a server, clients that train on their own rows, and rounds.

Every process of a run plays the server and all clients, one after another, on one model: a client's training is a few
optimizer steps on the adapter. What happens in a round depends on the settings, the seed, the number of the round and
the parameters, so a run continues after its last finished round with the same bits.

A method in the slot is run by honest clients only, and starts anew for each client and round: a server cannot make an
attacker run it. The malicious clients follow the protocol with plain training on their rows.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module

from harness.corpora.batches import Pool, RoleBatches
from harness.corpora.encode import Encoded
from harness.corpora.examples import Role
from harness.corpora.shards import Shards
from harness.engine.seeding import derive
from harness.engine.stage import never
from harness.engine.tracker import Tracker
from harness.errors import DataError, ModelError, Stopped
from harness.models.adapter import trained_pairs
from harness.protocols import (
    ActsAfterStep,
    Aggregate,
    ChoosesStart,
    EditsResult,
    ProducesOutputs,
    Product,
    ScalesLearningRates,
    Submission,
    TrainMethod,
    WeighsRows,
)
from harness.training.budget import Budget
from harness.training.checkpoint import FOLDER, MARKER, STATE, complete, resumable
from harness.training.distributed import barrier, broadcast_numbers, rank, world_size
from harness.training.fsdp import shard
from harness.training.learner import CausalLearner
from harness.training.meter import Meter
from harness.training.optimizer import optimizer_of
from harness.training.order import Order
from harness.training.passes import passes_on, usual_rows
from harness.training.pieces import rows_at_once
from harness.training.plain import PlainStep
from harness.training.product_mean import mean_product
from harness.training.rounds import Rounds
from harness.training.step_trainer import collator
from harness.training.trainer import (
    TrainReport,
    errors_only,
    longest_of,
    own_sizes,
    restoring_state,
    training_arguments,
)

if TYPE_CHECKING:
    from harness.protocols import Gradient


@dataclass
class Progress:
    """What a run has come to after its finished rounds; the state of a checkpoint.

    Attributes:
        values: the server's parameters, one tensor per trainable one.
        history: the entries of the curve, one per round.
        rounds: the records of the rounds.
        visits: in how many rounds each client has taken part.
        moments: the state of the optimizer of each client that keeps it.
    """

    values: Gradient
    history: list[dict[str, float]] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    visits: dict[int, int] = field(default_factory=dict)
    moments: dict[int, Any] = field(default_factory=dict)


def train_rounds(
    model: Module,
    *,
    method: TrainMethod | None,
    rows: Sequence[Encoded],
    mixed: Sequence[Encoded] = (),
    shards: Shards,
    rounds: Rounds,
    pools: Mapping[Role, Pool] | None = None,
    alignment: Mapping[str, Product] | None = None,
    budget: Budget,
    seed: int,
    pad_id: int,
    work: Path,
    tracker: Tracker,
    device: str = "cpu",
    sharded: bool = False,
    micro_batch_size: int | None = None,
    shrink: int = 1,
    stop: Callable[[], bool] = never,
) -> TrainReport:
    """Train a model's trainable parameters in rounds, in place; resume after the last finished round in ``work``.

    The history has one entry per round: ``step``, the optimizer steps of a client that was drawn every time; ``epoch``,
    the rows seen by all clients in multiples of the rows; ``learning_rate``; and means over the steps of all clients of
    the round: ``grad_norm``, ``clip_factor``, the method's metrics for honest clients and ``malicious_loss`` for the
    others. Each record of ``TrainReport.rounds`` has the ``clients`` of the round, those of them that are
    ``malicious``, the ``weights`` that the aggregator gave them, the L2 ``norms`` of their updates and the ``cosines``
    between these; with ``average: product`` also ``lost``, the share of the norm of the mean product that its
    approximation lost.

    Args:
        model: as for ``harness.training.trainer.train``.
        method: the defense in the slot, run by honest clients; None is plain supervised fine-tuning.
        rows: the training examples of all clients.
        mixed: examples that the method mixes into those of each honest client.
        shards: which client holds each of the rows.
        rounds: the settings of the federation.
        pools: examples and batch size of every role in ``method.needs``.
        alignment: as for ``train``.
        budget: hyperparameters of a client's training; its epochs are not used, and its schedule is over rounds.
        seed: the root seed; the draws of clients and, for each client, the order of its rows derive from it.
        pad_id: the padding token.
        work: folder for checkpoints, used by this run only.
        tracker: receives each history entry as it is recorded.
        device: a torch device string.
        sharded: as for ``train``.
        micro_batch_size: as for ``train``.
        shrink: as for ``train``.
        stop: returns whether to stop; polled at the end of rounds.

    Raises:
        DataError: a client has no row.
        ModelError: the model does not suit the method or the average, or the run diverged.
        ConfigError: the global batch has fewer examples than there are processes.
        Stopped: a stop was requested; a complete checkpoint is in ``work``.
    """
    held = _held(rows, shards)
    drawn = dict(pools or {})
    total_steps = rounds.rounds * rounds.local_steps
    folder = work / FOLDER
    with errors_only(), restoring_state(model):
        arguments = training_arguments(budget, folder=folder, seed=seed, total_steps=total_steps, device=device)
        shares = [math.ceil(pool.batch_size / world_size()) for pool in drawn.values()]
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
            longest=longest_of([*rows, *mixed], drawn),
            rows=usual_rows(own_sizes(budget, drawn), micro_batch),
            sharded=sharded,
        )
        learner = CausalLearner(
            model, precision=budget.precision, rows_at_once=micro_batch, passes=passes, alignment=alignment
        )
        progress = _restored(learner, resumable(folder, arguments.device))
        federation = _Federation(
            learner=learner,
            method=method,
            held=held,
            mixed=mixed,
            shards=shards,
            rounds=rounds,
            pools=drawn,
            budget=budget,
            seed=seed,
            pad_id=pad_id,
        )
        with passes.running(model, arguments.device) as trouble:
            for number in range(len(progress.rounds), rounds.rounds):
                federation.advance(progress, number)
                if rank() == 0:
                    entry = progress.history[-1]
                    tracker.log(
                        {name: value for name, value in entry.items() if name != "step"}, step=int(entry["step"])
                    )
                _save(progress, folder / f"checkpoint-{number}")
                (stopping,) = broadcast_numbers([stop()], arguments.device)
                if stopping and number + 1 < rounds.rounds:
                    raise Stopped(
                        f"Stopped after round {number + 1} of {rounds.rounds}; run again to resume from there."
                    )
        ran = passes.facts(trouble())
        with torch.no_grad():
            learner.assign(progress.values)
    return TrainReport(
        steps=total_steps,
        metrics=progress.history[-1],
        history=progress.history,
        rows_at_once=micro_batch,
        passes=ran,
        rounds=progress.rounds,
    )


@dataclass(frozen=True, kw_only=True)
class _Federation:
    """The server and its clients."""

    learner: CausalLearner
    method: TrainMethod | None
    held: Mapping[int, Sequence[Encoded]]
    mixed: Sequence[Encoded]
    shards: Shards
    rounds: Rounds
    pools: Mapping[Role, Pool]
    budget: Budget
    seed: int
    pad_id: int

    def advance(self, progress: Progress, number: int) -> None:
        """Carry out one round."""
        rounds, shards = self.rounds, self.shards
        clients = rounds.drawn(shards.clients, number, self.seed)
        rate = rounds.learning_rate(self.budget, number)
        meter = Meter()
        trained = [self._train(progress, client, number, rate, meter) for client in clients]
        start = _flat(progress.values)
        sent = Submission(
            values=torch.stack([_flat(values) for values in trained]),
            start=start,
            rows=tuple(len(self.held[client]) for client in clients),
            attackers=rounds.attackers(shards.clients, len(shards.malicious)),
            round=number,
            rounds=rounds.rounds,
            seed=derive(self.seed, "federation", "aggregate", str(number)),
        )
        result = rounds.aggregate.aggregate(sent)
        values = _shaped(result.values, progress.values)
        lost = None
        if rounds.average == "product":
            values, lost = _mean_product(self.learner, trained, result, values)
        for client in clients:
            progress.visits[client] = progress.visits.get(client, 0) + 1
        progress.values = values
        progress.history.append(self._entry(number, rate, meter))
        progress.rounds.append(
            {
                "round": number,
                "clients": clients,
                "malicious": [client for client in clients if client in shards.malicious],
                "weights": result.weights.tolist(),
                **_geometry(sent.updates),
                **({} if lost is None else {"lost": lost}),
            }
        )

    def _train(self, progress: Progress, client: int, number: int, rate: float, meter: Meter) -> Gradient:
        """Return the parameters that a client has after training on its rows from those of the server."""
        learner, budget, steps = self.learner, self.budget, self.rounds.local_steps
        honest = client not in self.shards.malicious
        with torch.no_grad():
            learner.assign(progress.values)
        own = derive(self.seed, "client", str(client))
        # Only dropout uses the global generators.
        torch.manual_seed(derive(own, "dropout", str(number)))
        batches = RoleBatches(
            self.pools,
            pad_id=self.pad_id,
            seed=derive(own, "round", str(number)),
            rank=rank(),
            world_size=world_size(),
        )
        rows = [*self.held[client], *(self.mixed if honest else ())]
        learner.example_count = len(rows)
        method = self.method if honest else None
        step = method.start(learner, batches, steps) if method else PlainStep(learner)
        if method and isinstance(step, ProducesOutputs | WeighsRows):
            raise ModelError(
                f"`{method.name}` keeps something of its training besides the parameters, which clients of a "
                "federation do not send; expected another method. Set `defense/finetune`"
            )
        if method and isinstance(step, ChoosesStart | ActsAfterStep | ScalesLearningRates):
            raise ModelError(
                f"`{method.name}` decides more than the gradients of a training (start, learning rates, what follows "
                "a step), which clients of a federation do not let it; expected another method. Set "
                "`defense/finetune`"
            )
        optimizer = optimizer_of(learner.trainables, budget, rate)
        if client in progress.moments:
            optimizer.load_state_dict(progress.moments[client])
            for group in optimizer.param_groups:
                group["lr"] = rate
        for taken, batch in enumerate(self._batches(rows, own, progress.visits.get(client, 0) * steps)):
            learner.steps_taken = taken
            metrics = step.backward(batch)
            meter.add(metrics if honest else {"malicious_loss": metrics["loss"]})
            meter.add(self._clip())
            optimizer.step()
        optimizer.zero_grad()
        if isinstance(step, EditsResult):
            step.finish()
        if self.rounds.optimizer == "kept":
            progress.moments[client] = optimizer.state_dict()
        return [parameter.detach().clone() for parameter in learner.trainables]

    def _batches(self, rows: Sequence[Encoded], seed: int, first: int) -> Iterator[Mapping[str, Tensor]]:
        """Yield the batches of a client's next steps; its epochs go on from round to round."""
        order = Order(len(rows), self.budget.batch_size, seed=seed, rank=rank(), world_size=world_size())
        collate_rows = collator(self.pad_id)
        for position in range(first, first + self.rounds.local_steps):
            order.epoch, within = divmod(position, len(order))
            indices = list(order)[within]
            yield collate_rows([(index, rows[index]) for index in indices])

    def _clip(self) -> dict[str, Tensor | float]:
        """Clip the gradient, and return its norm before and the factor."""
        limit = self.budget.max_grad_norm
        gradients = [parameter.grad for parameter in self.learner.trainables if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if limit is None:
            return {"grad_norm": norm, "clip_factor": 1.0}
        torch.nn.utils.clip_grads_with_norm_(self.learner.trainables, limit, norm)
        return {"grad_norm": norm, "clip_factor": (limit / (norm + 1e-6)).clamp(max=1.0)}

    def _entry(self, number: int, rate: float, meter: Meter) -> dict[str, float]:
        """Return the entry of a round in the history.

        Raises:
            ModelError: a value is not finite.
        """
        steps = (number + 1) * self.rounds.local_steps
        seen = steps * self.rounds.per_round * self.budget.batch_size
        entry = {
            "step": steps,
            "epoch": seen / sum(map(len, self.held.values())),
            "learning_rate": rate,
            **meter.take(),
        }
        if wrong := [name for name, value in entry.items() if not math.isfinite(value)]:
            raise ModelError(
                f"training diverged in round {number + 1}: {', '.join(wrong)} not finite; expected finite values. "
                "Lower `learning_rate` or the strength of the method, or set `max_grad_norm`"
            )
        return entry


def _held(rows: Sequence[Encoded], shards: Shards) -> dict[int, list[Encoded]]:
    held: dict[int, list[Encoded]] = {client: [] for client in range(shards.clients)}
    for row, owner in zip(rows, shards.owners, strict=True):
        held[owner].append(row)
    if empty := [client for client, own in held.items() if not own]:
        raise DataError(
            f"{len(empty)} of {shards.clients} clients have no row to train on; expected at least one each. Lower "
            "`federation.clients`, or raise `finetune.rows` or `model.encoding.max_length`"
        )
    return held


def _flat(values: Gradient) -> Tensor:
    return torch.cat([value.flatten() for value in values])


def _shaped(flat: Tensor, like: Gradient) -> Gradient:
    bounds = [0, *torch.tensor([value.numel() for value in like]).cumsum(0).tolist()]
    return [
        flat[first:last].reshape(value.shape).clone()
        for (first, last), value in zip(pairwise(bounds), like, strict=True)
    ]


def _geometry(updates: Tensor) -> dict[str, Any]:
    """Return the norms of the updates and their cosines, 0 for an update that is zero."""
    directions = torch.nn.functional.normalize(updates.double(), dim=1)
    return {
        "norms": updates.double().norm(dim=1).tolist(),
        "cosines": (directions @ directions.T).tolist(),
    }


def _mean_product(
    learner: CausalLearner, trained: Sequence[Gradient], result: Aggregate, values: Gradient
) -> tuple[Gradient, float]:
    """Return factors whose products approximate the mean of the clients' products, and the share of its norm lost.

    A layer whose mean product is zero keeps the mean factors.

    Raises:
        ModelError: what is trained is not plain LoRA.
    """
    names = [name for name, parameter in learner.module.named_parameters() if parameter.requires_grad]
    found = list(values)
    lost = whole = 0.0
    for name_a, name_b in trained_pairs(learner.module):
        a, b = names.index(name_a), names.index(name_b)
        near = mean_product([Product(each[b], each[a]) for each in trained], result.weights, len(values[a]))
        if near.whole > 0:
            found[b], found[a] = near.product
            lost, whole = lost + near.lost, whole + near.whole
    return found, math.sqrt(lost / whole) if whole else 0.0


def _restored(learner: CausalLearner, checkpoint: Path | None) -> Progress:
    """Return the progress in a checkpoint, or that of a run that has not started."""
    progress = Progress([parameter.detach().clone() for parameter in learner.trainables])
    if checkpoint is None:
        return progress
    state = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)
    device = learner.trainables[0].device
    return replace(progress, **{**state, "values": [value.to(device) for value in state["values"]]})


def _save(progress: Progress, checkpoint: Path) -> None:
    """Write a checkpoint; the one before it is deleted once this one is complete."""
    if rank() == 0:
        checkpoint.mkdir(parents=True, exist_ok=True)
        torch.save(vars(progress), checkpoint / STATE)
        complete(checkpoint)
        for older in checkpoint.parent.glob("checkpoint-*"):
            if older != checkpoint:
                # Without its marker it is incomplete, not damaged, should the process be killed here.
                (older / MARKER).unlink(missing_ok=True)
                shutil.rmtree(older)
    barrier()
