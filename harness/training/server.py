"""The server of a federation: combines what the clients of a round sent. It needs no model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from harness.corpora.shards import Shards
from harness.engine.seeding import derive
from harness.errors import ModelError
from harness.models.adapter import pairs_of
from harness.protocols import Aggregate, Product, Submission
from harness.training.budget import Budget
from harness.training.meter import Meter
from harness.training.product_mean import mean_product
from harness.training.rounds import Rounds

if TYPE_CHECKING:
    from harness.protocols import Gradient


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What a client sends to the server after its training in a round.

    Attributes:
        client: its number.
        values: its parameters, one tensor per trainable one.
        rows: the number of rows that it holds.
        metrics: the metrics of its steps, in order, float64.
        moments: the state of its optimizer, if it keeps that; it stays with the client.
    """

    client: int
    values: Gradient
    rows: int
    metrics: Sequence[Mapping[str, Tensor]]
    moments: Any = None


class Combined(NamedTuple):
    """The result of a round.

    Attributes:
        values: the server's new parameters.
        entry: the round's entry in the history, see ``train_rounds``.
        record: the record of the round, see ``train_rounds``.
    """

    values: Gradient
    entry: dict[str, float]
    record: dict[str, Any]


class Server(NamedTuple):
    """The server of a run.

    Attributes:
        names: the names of the trained parameters, in the order of their values.
        shards: the number of clients, and which of them are malicious.
        sizes: the number of examples that each client trains on.
        rounds: the settings of the federation.
        budget: hyperparameters of a client's training.
        seed: the root seed.
    """

    names: Sequence[str]
    shards: Shards
    sizes: Sequence[int]
    rounds: Rounds
    budget: Budget
    seed: int

    def combine(self, start: Gradient, sent: Sequence[Sent], number: int) -> Combined:
        """Return the result of a round.

        Args:
            start: the parameters that the server had sent.
            sent: what the clients of the round sent, in ascending order of clients.
            number: of the round, counted from 0.

        Raises:
            ModelError: what is trained does not suit the average, or the run diverged.
        """
        rounds, shards = self.rounds, self.shards
        received = Submission(
            values=torch.stack([flat(each.values) for each in sent]),
            start=flat(start),
            rows=tuple(each.rows for each in sent),
            attackers=rounds.attackers(shards.clients, len(shards.malicious)),
            round=number,
            rounds=rounds.rounds,
            seed=derive(self.seed, "federation", "aggregate", str(number)),
        )
        result = rounds.aggregate.aggregate(received)
        values = shaped(result.values, [value.shape for value in start])
        lost = None
        if rounds.average == "product":
            values, lost = _mean_product(self.names, [each.values for each in sent], result, values)
        record = {
            "round": number,
            "clients": [each.client for each in sent],
            "malicious": [each.client for each in sent if each.client in shards.malicious],
            "weights": result.weights.tolist(),
            **_geometry(received.updates),
            **({} if lost is None else {"lost": lost}),
        }
        return Combined(values, self._entry(sent, number), record)

    def _entry(self, sent: Sequence[Sent], number: int) -> dict[str, float]:
        """Return the entry of a round in the history.

        Raises:
            ModelError: a value is not finite.
        """
        meter = Meter()
        for metrics in (metrics for each in sent for metrics in each.metrics):
            meter.add(metrics)
        entry = {
            "step": (number + 1) * self.rounds.local_steps,
            "epoch": self._seen(number + 1) / sum(self.sizes),
            "learning_rate": self.rounds.learning_rate(self.budget, number),
            **meter.take(),
        }
        if wrong := [name for name, value in entry.items() if not math.isfinite(value)]:
            raise ModelError(
                f"training diverged in round {number + 1}: {', '.join(wrong)} not finite; expected finite values. "
                "Lower `learning_rate` or the strength of the method, or set `max_grad_norm`"
            )
        return entry

    def _seen(self, rounds: int) -> int:
        """Return how many examples all clients have seen in the first rounds; the last batch of an epoch is smaller."""
        seen, size = 0, self.budget.batch_size
        for examples, visits in zip(self.sizes, self.rounds.visits(len(self.sizes), rounds, self.seed), strict=True):
            epochs, batches = divmod(visits * self.rounds.local_steps, math.ceil(examples / size))
            seen += epochs * examples + batches * size
        return seen


def flat(values: Gradient) -> Tensor:
    """Return parameters as one vector."""
    return torch.cat([value.flatten() for value in values])


def shaped(vector: Tensor, shapes: Sequence[Sequence[int]]) -> Gradient:
    """Return a vector as parameters of these shapes."""
    bounds = accumulate((math.prod(shape) for shape in shapes), initial=0)
    return [
        vector[first:last].reshape(shape).clone()
        for (first, last), shape in zip(pairwise(bounds), map(tuple, shapes), strict=True)
    ]


def _geometry(updates: Tensor) -> dict[str, Any]:
    """Return the norms of the updates and their cosines, 0 for an update that is zero."""
    directions = torch.nn.functional.normalize(updates.double(), dim=1)
    return {
        "norms": updates.double().norm(dim=1).tolist(),
        "cosines": (directions @ directions.T).tolist(),
    }


def _mean_product(
    names: Sequence[str], trained: Sequence[Gradient], result: Aggregate, values: Gradient
) -> tuple[Gradient, float]:
    """Return factors whose products approximate the mean of the clients' products, and the share of its norm lost.

    A layer whose mean product is zero keeps the mean factors.

    Raises:
        ModelError: what is trained is not plain LoRA.
    """
    places = {name: place for place, name in enumerate(names)}
    found = list(values)
    lost = whole = 0.0
    for name_a, name_b in pairs_of(names):
        a, b = places[name_a], places[name_b]
        near = mean_product([Product(each[b], each[a]) for each in trained], result.weights, len(values[a]))
        if near.whole > 0:
            found[b], found[a] = near.product
            lost, whole = lost + near.lost, whole + near.whole
    return found, math.sqrt(lost / whole) if whole else 0.0
