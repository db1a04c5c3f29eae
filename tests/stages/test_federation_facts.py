"""Facts about the rounds of a federation, counted by hand; and what the stage of the mixture writes."""

import pytest

from harness.corpora.examples import Example, Role
from harness.corpora.shards import Shards
from harness.stages.federation import federation_facts
from harness.stages.poison import read_mixture, write_mixture

SHARDS = Shards([0, 1, 2], 3, frozenset({2}))
ROUNDS = [
    {"clients": [0, 1], "weights": [0.5, 0.5], "norms": [1.0, 3.0], "cosines": [[1, 0.5], [0.5, 1]]},
    {"clients": [0, 2], "weights": [0.75, 0.25], "norms": [2.0, 8.0], "cosines": [[1, -0.5], [-0.5, 1]]},
]


def test_facts_tell_honest_and_malicious_clients_apart():
    facts = federation_facts(SHARDS, ROUNDS)

    assert facts == {
        "malicious": [2],
        "participation": [2, 1, 1],
        "malicious_slots": 0.25,
        "malicious_weight": 0.125,
        "update_norms": {"honest": 2.0, "malicious": 8.0},
        "cosines": {"honest": 0.5, "malicious": None, "mixed": -0.5},
    }


def test_what_products_lost_is_a_mean_over_rounds():
    rounds = [{**record, "lost": lost} for record, lost in zip(ROUNDS, (0.1, 0.3), strict=True)]

    assert federation_facts(SHARDS, rounds)["lost"] == pytest.approx(0.2)


def test_mixture_with_clients_is_read_as_one_without(tmp_path):
    rows = [(Example("a", "b"), Role.TASK), (Example("c", "d", "e"), Role.ATTACK)]
    plain, held = tmp_path / "plain", tmp_path / "held"
    for folder, owners in ((plain, None), (held, [1, 0])):
        folder.mkdir()
        write_mixture(folder, rows, owners)

    assert read_mixture(plain) == read_mixture(held) == rows
    assert "client" not in (plain / "rows.jsonl").read_text()
    assert '"client": 1' in (held / "rows.jsonl").read_text().splitlines()[0]
