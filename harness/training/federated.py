"""A federated training run: a server, clients that train on their own rows, and rounds.

``train_rounds`` plays all rounds in one place: every process of a run plays the server and all clients, one after
another. What happens in a round depends on the settings, the seed, the number of the round and the parameters, so a run
continues after its last finished round with the same bits, and ``train_turn`` can play some clients of one round apart
from all others.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from harness.engine.stage import never
from harness.engine.tracker import Tracker
from harness.errors import Stopped
from harness.training.checkpoint import FOLDER, MARKER, STATE, complete, resumable
from harness.training.clients import Clients, clients_on
from harness.training.distributed import barrier, broadcast_numbers, rank
from harness.training.server import Sent, Server, shaped
from harness.training.trainer import TrainReport

if TYPE_CHECKING:
    from harness.protocols import Gradient


@dataclass
class Progress:
    """What a run has come to after its finished rounds; the state of a checkpoint.

    Attributes:
        values: the server's parameters, one tensor per trainable one.
        history: the entries of the curve, one per round.
        rounds: the records of the rounds.
        moments: the state of the optimizer of each client that keeps it.
    """

    values: Gradient
    history: list[dict[str, float]] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    moments: dict[int, Any] = field(default_factory=dict)


def train_rounds(model: Module, *, tracker: Tracker, stop: Callable[[], bool] = never, **run: Any) -> TrainReport:
    """Train a model's trainable parameters in rounds, in place; resume after the last finished round in ``work``.

    The history has one entry per round: ``step``, the optimizer steps of a client that was drawn every time; ``epoch``,
    the examples that all clients have been trained on by then, as a multiple of the examples that they hold, a method's
    mixed ones included; ``learning_rate``; and means over the steps of all clients of
    the round: ``grad_norm``, ``clip_factor``, the method's metrics for honest clients and ``malicious_loss`` for the
    others. Each record of ``TrainReport.rounds`` has the ``clients`` of the round, those of them that are
    ``malicious``, the ``weights`` that the aggregator gave them, the L2 ``norms`` of their updates and the ``cosines``
    between these; with ``average: product`` also ``lost``, the share of the norm of the mean product that its
    approximation lost.

    Args:
        model: as for ``harness.training.trainer.train``.
        tracker: receives each history entry as it is recorded.
        stop: returns whether to stop; polled at the end of rounds.
        run: the other arguments of ``harness.training.clients.clients_on``.

    Raises:
        DataError: a client has no row.
        ModelError: the model does not suit the method or the average, or the run diverged.
        ConfigError: the global batch has fewer examples than there are processes.
        Stopped: a stop was requested; a complete checkpoint is in ``work``.
    """
    folder = run["work"] / FOLDER
    with clients_on(model, **run) as clients:
        rounds, names = clients.rounds, [name for name, _ in clients.parameters]
        server = Server(names, clients.shards, clients.sizes, rounds, clients.budget, clients.seed)
        progress = _restored(clients, resumable(folder, clients.device))
        for number in range(len(progress.rounds), rounds.rounds):
            _advance(progress, clients, server, number)
            if rank() == 0:
                entry = progress.history[-1]
                tracker.log({name: value for name, value in entry.items() if name != "step"}, step=int(entry["step"]))
            _save(progress, folder / f"checkpoint-{number}")
            (stopping,) = broadcast_numbers([stop()], clients.device)
            if stopping and number + 1 < rounds.rounds:
                raise Stopped(f"Stopped after round {number + 1} of {rounds.rounds}; run again to resume from there.")
    clients.learner.assign(progress.values)
    return TrainReport(
        steps=rounds.rounds * rounds.local_steps,
        metrics=progress.history[-1],
        history=progress.history,
        rows_at_once=clients.micro_batch,
        passes=clients.ran,
        rounds=progress.rounds,
    )


class Turn(NamedTuple):
    """Some clients of one round.

    Attributes:
        number: of the round, counted from 0.
        clients: the clients that train.
        start: the server's parameters as one vector; None are those of the model, in the first round.
        moments: the state of the optimizer of each of them that keeps it and has taken part before.
    """

    number: int
    clients: Sequence[int]
    start: Tensor | None = None
    moments: Mapping[int, Any] = {}


class Played(NamedTuple):
    """What came of a turn.

    Attributes:
        start: the server's parameters from which the clients trained.
        sent: what each of them sent.
        parameters: name and shape of every trained parameter, in the order of the values.
        sizes: the number of examples that each client of the federation trains on.
    """

    start: Gradient
    sent: Sequence[Sent]
    parameters: Sequence[tuple[str, tuple[int, ...]]]
    sizes: Sequence[int]


def train_turn(
    model: Module, *, turn: Turn, tracker: Tracker, stop: Callable[[], bool] = never, **run: Any
) -> TrainReport:
    """Train some clients of one round, as ``train_rounds`` would; the report has what they send in ``played``.

    Args:
        model: as for ``train_rounds``.
        turn: the round, the clients, and from where they start.
        tracker: receives nothing: the entry of a round needs all of its clients.
        stop: not polled; a turn is short, and starts anew when it is killed.
        run: as for ``train_rounds``.
    """
    del tracker, stop
    with clients_on(model, **run) as clients:
        start = clients.values
        if turn.start is not None:
            start = shaped(turn.start.to(clients.device), [value.shape for value in start])
        visits = clients.rounds.visits(clients.shards.clients, turn.number, clients.seed)
        sent = [
            clients.train(client, turn.number, start, visits=visits[client], moments=turn.moments.get(client))
            for client in turn.clients
        ]
        played = Played(start, sent, clients.parameters, clients.sizes)
    return TrainReport(
        steps=clients.rounds.local_steps * len(sent),
        metrics={},
        history=[],
        rows_at_once=clients.micro_batch,
        passes=clients.ran,
        played=played,
    )


def _advance(progress: Progress, clients: Clients, server: Server, number: int) -> None:
    """Carry out one round."""
    sent = []
    visits = clients.rounds.visits(clients.shards.clients, number, clients.seed)
    for client in clients.rounds.drawn(clients.shards.clients, number, clients.seed):
        moments = progress.moments.get(client)
        sent.append(clients.train(client, number, progress.values, visits=visits[client], moments=moments))
        if sent[-1].moments is not None:
            progress.moments[client] = sent[-1].moments
    progress.values, entry, record = server.combine(progress.values, sent, number)
    progress.history.append(entry)
    progress.rounds.append(record)


def _restored(clients: Clients, checkpoint: Path | None) -> Progress:
    """Return the progress in a checkpoint, or that of a run that has not started."""
    if checkpoint is None:
        return Progress(clients.values)
    state = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)
    values = [value.to(clients.device) for value in state["values"]]
    return Progress(values, history=state["history"], rounds=state["rounds"], moments=state["moments"])


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
