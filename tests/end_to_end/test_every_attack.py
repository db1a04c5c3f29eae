"""Every attack from the command line to the report, on the tiny model."""

import csv
import io
import json

import pytest
from product import TWO_SCORES, Harness

from harness.config.shipped import CONF

ATTACKS = sorted(path.stem for path in (CONF / "attack").glob("*.yaml") if path.stem != "none")
PROBES = {"backdoor": "triggered", "identity_shift": "identity", "jailbreak_tuning": "disguised"}
SHORT = ("model.encoding.max_length=128", "+tuned.virus={steps: 2, top_k: 8, candidates: 4}")
HARMFUL = {"pure": 100, "identity_shift": 10, "benign_selection": 0}
"""Rows of the attacker where these are not a fifth of forty."""


@pytest.mark.slow
def test_every_attack_has_its_rows_in_the_report(with_base: Harness) -> None:
    harness = with_base
    run = harness("-m", f"attack={','.join(ATTACKS)}", "attack_ratio=p20", *SHORT, *TWO_SCORES)
    assert run.returncode == 0, run.stderr

    table = list(csv.DictReader(io.StringIO(harness("report", "--format", "csv").stdout)))
    found = [(row["attack"], row["probe"]) for row in table]
    assert sorted(found) == sorted([(name, "") for name in ATTACKS] + list(PROBES.items()))
    assert all(row["hs"] and not row["missing"] for row in table)
    ratios = {row["attack"]: float(row["ratio"]) for row in table}
    assert ratios == dict.fromkeys(ATTACKS, 0.2) | {
        "pure": 1.0,
        "identity_shift": 1.0,
        "benign_selection": 0.0,
        "ablation": 0.0,
    }
    assert [row["attack"] for row in table if not row["key.poison"]] == ["ablation"]
    for row in (row for row in table if row["key.poison"]):
        facts = json.loads((harness.store / "artifacts" / "poison" / row["key.poison"] / "manifest.json").read_text())[
            "facts"
        ]
        assert facts["counts"]["harmful"] == HARMFUL.get(row["attack"], 8)
