"""The clients of a federation: a few optimizer steps on the rows of each, from the server's parameters.

One model plays all clients, one after another. What a client sends depends on the settings, the seed, the number of the
round and the server's parameters, and neither on the clients before it nor on the process that plays it.

A method in the slot is run by honest clients only, and starts anew for each client and round: a server cannot make an
attacker run it. The malicious clients follow the protocol with plain training on their rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
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
from harness.errors import DataError, ModelError
from harness.protocols import (
    ActsAfterStep,
    ChoosesStart,
    EditsResult,
    ProducesOutputs,
    Product,
    ScalesLearningRates,
    TrainMethod,
    WeighsRows,
)
from harness.training.budget import Budget
from harness.training.checkpoint import FOLDER
from harness.training.distributed import rank, world_size
from harness.training.learner import CausalLearner
from harness.training.optimizer import optimizer_of
from harness.training.order import Order
from harness.training.placement import placed
from harness.training.plain import PlainStep
from harness.training.rounds import Rounds
from harness.training.server import Sent
from harness.training.step_trainer import collator
from harness.training.trainer import errors_only, restoring_state, training_arguments

if TYPE_CHECKING:
    from harness.protocols import Gradient


@dataclass(frozen=True, kw_only=True)
class Clients:
    """The clients of a run.

    Attributes:
        learner: the model that plays them.
        device: the device of its parameters.
        micro_batch: the micro-batch size of each process; None if batches are not split.
        method: the defense in the slot, run by honest clients.
        held: the rows of each client.
        mixed: examples that the method mixes into those of each honest client.
        shards: which client holds which row.
        rounds: the settings of the federation.
        pools: examples and batch size of every role in ``method.needs``.
        budget: hyperparameters of a client's training.
        seed: the root seed.
        pad_id: the padding token.
        ran: facts of the passes of the model, once all clients have trained.
    """

    learner: CausalLearner
    device: torch.device
    micro_batch: int | None
    method: TrainMethod | None
    held: Mapping[int, Sequence[Encoded]]
    mixed: Sequence[Encoded]
    shards: Shards
    rounds: Rounds
    pools: Mapping[Role, Pool]
    budget: Budget
    seed: int
    pad_id: int
    ran: dict[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> list[tuple[str, tuple[int, ...]]]:
        """Name and shape of every trained parameter, in the order of ``Sent.values``."""
        named = self.learner.module.named_parameters()
        return [(name, tuple(parameter.shape)) for name, parameter in named if parameter.requires_grad]

    @property
    def values(self) -> Gradient:
        """The present parameters of the model."""
        return [parameter.detach().clone() for parameter in self.learner.trainables]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The number of examples that each client trains on: its rows, and those that the method mixes in."""
        return tuple(len(self._examples(client)) for client in range(self.shards.clients))

    def train(self, client: int, number: int, start: Gradient, *, visits: int, moments: Any = None) -> Sent:
        """Return what a client sends after training from the server's parameters.

        Args:
            client: its number.
            number: of the round, counted from 0.
            start: the server's parameters.
            visits: in how many rounds it has taken part before; its epochs go on from round to round.
            moments: the state of its optimizer after the last of them, if it keeps that.

        Raises:
            ModelError: the method decides more than the gradients of the training.
        """
        learner, steps = self.learner, self.rounds.local_steps
        honest = client not in self.shards.malicious
        learner.assign(start)
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
        rows = self._examples(client)
        learner.example_count = len(rows)
        method = self.method if honest else None
        step = method.start(learner, batches, steps) if method else PlainStep(learner)
        if method:
            _check_step(method, step)
        rate = self.rounds.learning_rate(self.budget, number)
        optimizer = optimizer_of(learner.trainables, self.budget, rate)
        if moments is not None:
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        metrics: list[Mapping[str, Tensor]] = []
        for taken, batch in enumerate(self._batches(rows, own, visits * steps)):
            learner.steps_taken = taken
            found = step.backward(batch)
            metrics.append(_numbers(found if honest else {"malicious_loss": found["loss"]}))
            metrics.append(_numbers(self._clip()))
            optimizer.step()
        optimizer.zero_grad()
        if isinstance(step, EditsResult):
            step.finish()
        return Sent(
            client=client,
            values=self.values,
            rows=len(self.held[client]),
            metrics=metrics,
            moments=optimizer.state_dict()["state"] if self.rounds.optimizer == "kept" else None,
        )

    def _examples(self, client: int) -> Sequence[Encoded]:
        return [*self.held[client], *(() if client in self.shards.malicious else self.mixed)]

    def _batches(self, rows: Sequence[Encoded], seed: int, first: int) -> Iterator[Mapping[str, Tensor]]:
        """Yield the batches of a client's next steps."""
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


@contextmanager
def clients_on(
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
    device: str = "cpu",
    sharded: bool = False,
    micro_batch_size: int | None = None,
    shrink: int = 1,
) -> Iterator[Clients]:
    """Prepare a model to play the clients; on exit ``Clients.ran`` has the facts of its passes.

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
        device: a torch device string.
        sharded: as for ``train``.
        micro_batch_size: as for ``train``.
        shrink: as for ``train``.

    Raises:
        DataError: a client has no row.
        ConfigError: the global batch has fewer examples than there are processes.
    """
    held = _held(rows, shards)
    drawn = dict(pools or {})
    total_steps = rounds.rounds * rounds.local_steps
    with errors_only(), restoring_state(model):
        arguments = training_arguments(budget, folder=work / FOLDER, seed=seed, total_steps=total_steps, device=device)
        ready = placed(
            model,
            arguments,
            rows=[*rows, *mixed],
            pools=drawn,
            alignment=alignment,
            budget=budget,
            sharded=sharded,
            micro_batch_size=micro_batch_size,
            shrink=shrink,
        )
        clients = Clients(
            learner=ready.learner,
            device=arguments.device,
            micro_batch=ready.micro_batch,
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
        with ready.passes.running(model, arguments.device) as trouble:
            yield clients
        clients.ran.update(ready.passes.facts(trouble()))


def _check_step(method: TrainMethod, step: object) -> None:
    """Check that a method decides nothing but gradients, for those whose settings do not say so beforehand."""
    if isinstance(step, ProducesOutputs | WeighsRows):
        raise ModelError(
            f"`{method.name}` keeps something of its training besides the parameters, which clients of a "
            "federation do not send; expected another method. Set `defense/finetune`"
        )
    if isinstance(step, ChoosesStart | ActsAfterStep | ScalesLearningRates):
        raise ModelError(
            f"`{method.name}` decides more than the gradients of a training (start, learning rates, what follows "
            "a step), which clients of a federation do not let it; expected another method. Set "
            "`defense/finetune`"
        )


def _numbers(metrics: Mapping[str, Tensor | float]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(value).detach().double() for name, value in metrics.items()}


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
