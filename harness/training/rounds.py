"""Rounds: the settings of a federated training run, in addition to the budget of a client's local training."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar, Literal, final

from harness.engine.checks import counts
from harness.engine.seeding import generator
from harness.errors import Problem
from harness.protocols import Aggregator
from harness.training.budget import Budget, Scheduler


@final
@dataclass(frozen=True, kw_only=True)
class Rounds:
    """A server and its clients.

    In each round the server sends its parameters to some clients, each of which trains them on its own rows; the
    server combines the results (federated averaging, McMahan et al., arXiv:1602.05629).

    Attributes:
        per_round: number of clients in a round, drawn without replacement.
        rounds: number of rounds.
        local_steps: optimizer steps of a client in a round.
        aggregate: how the server combines the results.
        average: what is averaged: ``factors`` averages the adapter's factors A and B each by itself, as published, so
            that the product of the means is not the mean of the products; ``product`` averages the products and
            approximates the result by its largest singular values, as many as the adapter's rank.
        optimizer: ``fresh`` starts AdamW anew for each client and round; ``kept`` lets a client keep its moments.
    """

    name: ClassVar[str] = "rounds"
    version: ClassVar[int] = 1
    per_round: int
    rounds: int
    local_steps: int
    aggregate: Aggregator
    average: Literal["factors", "product"] = "factors"
    optimizer: Literal["fresh", "kept"] = "fresh"

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return counts(self, "per_round", "rounds", "local_steps")

    def drawn(self, clients: int, number: int, seed: int) -> list[int]:
        """Return the clients of a round, in ascending order.

        Args:
            clients: the number of all clients.
            number: of the round, counted from 0.
            seed: the seed of the run; other runs draw other clients.
        """
        return sorted(generator(seed, "federation", "draw", str(number)).sample(range(clients), self.per_round))

    def visits(self, clients: int, number: int, seed: int) -> list[int]:
        """Return for each client in how many of the first ``number`` rounds it takes part."""
        counts = Counter(client for earlier in range(number) for client in self.drawn(clients, earlier, seed))
        return [counts[client] for client in range(clients)]

    def attackers(self, clients: int, malicious: int) -> int:
        """Return how many clients of a round the server takes to be malicious: their share, rounded half up."""
        return math.floor(self.per_round * malicious / clients + 0.5)

    def learning_rate(self, budget: Budget, number: int) -> float:
        """Return the learning rate of a round: the budget's schedule over rounds, constant within one.

        The schedules are those of ``transformers``, with a round for a step.
        """
        warmup = math.ceil(self.rounds * budget.warmup_ratio)
        if number < warmup and budget.scheduler is not Scheduler.CONSTANT:
            return budget.learning_rate * number / warmup
        done = (number - warmup) / max(self.rounds - warmup, 1)
        if budget.scheduler is Scheduler.LINEAR:
            return budget.learning_rate * (1 - done)
        if budget.scheduler is Scheduler.COSINE:
            return budget.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
        return budget.learning_rate
