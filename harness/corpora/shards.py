"""Shards: the rows of a fine-tuning divided among the clients of a federation.

The rows are those of the mixture without a federation, so that a federated run and a central one at the same poison
ratio differ in who holds which row and in nothing else. Clients have equal numbers of rows. The attacker's rows lie
with the malicious clients, in equal parts; the user's own rows fill what room is left, in mixing order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

from harness.engine.checks import counts, not_negative
from harness.engine.seeding import generator
from harness.errors import DataError, Problem


@final
@dataclass(frozen=True, kw_only=True)
class Clients:
    """Who takes part in a federation.

    Attributes:
        clients: number of clients.
        malicious: number of those that hold the attacker's rows.
    """

    name: ClassVar[str] = "clients"
    version: ClassVar[int] = 1
    clients: int
    malicious: int

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return [*counts(self, "clients"), *not_negative(self, "malicious")]


class Shards(NamedTuple):
    """The rows of a mixture by client.

    Attributes:
        owners: the client of each row, counted from 0.
        clients: number of clients.
        malicious: the clients that hold the attacker's rows.
    """

    owners: list[int]
    clients: int
    malicious: frozenset[int]


def sizes_of(rows: int, clients: int) -> list[int]:
    """Return the number of rows of each client: equal, or one more for the first ones."""
    return [rows // clients + (client < rows % clients) for client in range(clients)]


def fewest_malicious(rows: int, harmful: int, clients: int) -> int:
    """Return the smallest number of clients that can hold the attacker's rows, whichever clients these are."""
    return -(-harmful // max(rows // clients, 1))


def malicious_clients(clients: Clients, seed: int) -> frozenset[int]:
    """Return which clients are malicious; a larger number of them includes those of a smaller one."""
    order = list(range(clients.clients))
    generator(seed, "federation", "malicious").shuffle(order)
    return frozenset(order[: clients.malicious])


def divide(harmful: Sequence[bool], clients: Clients, seed: int) -> Shards:
    """Return which client holds each row of a mixture.

    Args:
        harmful: whether each row is the attacker's, in mixing order.
        clients: the number of clients.
        seed: the root seed.

    Raises:
        DataError: the malicious clients have too little room for the attacker's rows.
    """
    malicious = malicious_clients(clients, seed)
    room = sizes_of(len(harmful), clients.clients)
    if sum(harmful) > (most := sum(room[client] for client in malicious)):
        raise DataError(
            f"{sum(harmful)} rows of the attacker, but the {clients.malicious} malicious of {clients.clients} clients "
            f"hold {most} rows; expected at most as many. Raise `federation.malicious` or lower `attack.ratio`"
        )
    owners = [-1] * len(harmful)
    held = [0] * clients.clients
    for row in (row for row, theirs in enumerate(harmful) if theirs):
        owners[row] = owner = min((who for who in sorted(malicious) if room[who]), key=held.__getitem__)
        held[owner] += 1
        room[owner] -= 1
    for row in (row for row, theirs in enumerate(harmful) if not theirs):
        owners[row] = owner = max(range(clients.clients), key=room.__getitem__)
        room[owner] -= 1
    return Shards(owners, clients.clients, malicious)
