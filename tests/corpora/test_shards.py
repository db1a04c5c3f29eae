"""Rows divided among clients: equal shards, the attacker's rows with the malicious clients, and the same ids again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.corpora.shards import Clients, divide, fewest_malicious, malicious_clients
from harness.errors import DataError


@given(
    rows=st.integers(1, 60),
    clients=st.integers(1, 12),
    share=st.floats(0, 1),
    seed=st.integers(0, 5),
    extra=st.integers(0, 2),
)
def test_clients_have_equal_shards_and_only_malicious_ones_the_attackers_rows(rows, clients, share, seed, extra):
    clients = min(clients, rows)
    harmful = int(share * (rows // clients) * clients)
    flags = [(7 * row + seed) % rows < harmful for row in range(rows)]
    malicious = min(fewest_malicious(rows, harmful, clients) + extra, clients)

    shards = divide(flags, Clients(clients=clients, malicious=malicious), seed)

    sizes = [shards.owners.count(client) for client in range(clients)]
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) == rows
    bad_owners = [owner for flag, owner in zip(flags, shards.owners, strict=True) if flag]
    held = [bad_owners.count(who) for who in range(clients)]
    assert all(count == 0 for who, count in enumerate(held) if who not in shards.malicious)
    bad = [held[who] for who in shards.malicious]
    assert not bad or max(bad) - min(bad) <= 1


def test_quarter_of_four_clients_is_one_and_more_malicious_ones_include_fewer():
    one, again, two = (malicious_clients(Clients(clients=4, malicious=count), seed=3) for count in (1, 1, 2))

    assert len(one) == 1
    assert one == again
    assert one < two
    assert len({malicious_clients(Clients(clients=4, malicious=1), seed=seed) for seed in range(20)}) > 1


@pytest.mark.parametrize(
    ("rows", "harmful", "clients", "fewest"), [(600, 60, 10, 1), (600, 61, 10, 2), (600, 0, 10, 0)]
)
def test_fewest_malicious_clients_are_those_that_hold_the_attackers_rows(rows, harmful, clients, fewest):
    assert fewest_malicious(rows, harmful, clients) == fewest


def test_malicious_clients_without_room_are_refused():
    with pytest.raises(DataError, match=r"4 rows of the attacker.*hold 3 rows"):
        divide([True] * 4 + [False] * 2, Clients(clients=2, malicious=1), seed=0)
