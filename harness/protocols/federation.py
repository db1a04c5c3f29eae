"""Interface of aggregators: how a server combines what its clients trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from harness.protocols.learner import Named

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What the clients of a round sent to the server, and what the server knows about them.

    Attributes:
        values: the trained parameters of each client, flattened, ``[clients, parameters]``, float32.
        start: the parameters that the server had sent, ``[parameters]``.
        rows: the number of training rows of each client.
        attackers: how many of the clients the server takes to be malicious.
        round: number of the round, counted from 0.
        rounds: number of rounds.
        seed: of the aggregator's random choices in this round.
    """

    values: Tensor
    start: Tensor
    rows: tuple[int, ...]
    attackers: int
    round: int
    rounds: int
    seed: int

    @property
    def updates(self) -> Tensor:
        """What each client changed, ``[clients, parameters]``."""
        return self.values - self.start


class Aggregate(NamedTuple):
    """The result of a round.

    Attributes:
        values: the server's new parameters, ``[parameters]``.
        weights: the share that each client has in them, ``[clients]``, with sum 1, or 0 if no client has any. For an
            aggregator that decides coordinate by coordinate, the client's mean share of a coordinate.
    """

    values: Tensor
    weights: Tensor


class Aggregator(Named, Protocol):
    """Frozen settings of how a server combines the parameters of the clients of a round."""

    weighs_clients: ClassVar[bool]
    """Whether the result is the mean of the clients by their weights, so that products can be averaged instead."""

    @property
    def fewest(self) -> int:
        """The smallest number of clients in a round for which the aggregator is defined."""
        ...

    def aggregate(self, sent: Submission) -> Aggregate:
        """Combine the parameters; must not depend on which clients are malicious."""
        ...
