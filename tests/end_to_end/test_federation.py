"""A federation from the command line to the report, with its server's defense and the leakage probe."""

import csv
import io
import json

import pytest
from product import TWO_SCORES, Harness

from harness.config.shipped import CONF

AGGREGATORS = sorted(path.stem for path in (CONF / "federation/aggregate").glob("*.yaml"))
SMALL = ("federation.rounds=2", "federation.local_steps=1", *TWO_SCORES)


def rows_of(harness: Harness) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(harness("report", "--format", "csv").stdout)))


def facts_of(harness: Harness, row: dict[str, str], kind: str) -> dict:
    return json.loads((harness.store / "artifacts" / kind / row[f"key.{kind}"] / "manifest.json").read_text())["facts"]


@pytest.mark.slow
def test_every_aggregator_has_its_row_and_says_how_much_the_attacker_weighed(with_base: Harness) -> None:
    harness = with_base
    run = harness("-m", "federation=tiny", f"federation/aggregate={','.join(AGGREGATORS)}", "attack.ratio=0.4", *SMALL)
    assert run.returncode == 0, run.stderr

    table = rows_of(harness)

    assert [row["federation.aggregate"] for row in table] == AGGREGATORS
    assert all(row["hs"] and row["fa"] and not row["missing"] for row in table)
    assert len({row["key.poison"] for row in table}) == 1
    poison = harness.store / "artifacts/poison" / table[0]["key.poison"] / "rows.jsonl"
    held = [json.loads(line) for line in poison.read_text().splitlines()]
    malicious = facts_of(harness, table[0], "poison")["malicious"]
    assert len(malicious) == 4
    assert {row["client"] for row in held if row["role"] == "attack"} == set(malicious)
    assert {row["client"] for row in held if row["role"] == "task"} == set(range(10)) - set(malicious)
    for row in table:
        facts = facts_of(harness, row, "finetune")
        assert facts["federation"]["malicious"] == malicious
        assert sum(facts["federation"]["participation"]) == 6
        assert 0 <= facts["federation"]["malicious_weight"] <= 1
        rounds = harness.store / "artifacts/finetune" / row["key.finetune"] / "rounds.jsonl"
        assert [json.loads(line)["round"] for line in rounds.read_text().splitlines()] == [0, 1]


@pytest.mark.slow
def test_server_repairs_what_the_clients_trained_and_noise_hides_their_rows(with_base: Harness) -> None:
    harness = with_base
    probe = ("leakage=matching", "leakage.candidates=20", "leakage.rows=5")
    noise = ("defense.finetune.clip=0.01", "defense.finetune.clip_end=0.01")
    loud = ("defense.finetune.sigma=1000", "defense.finetune.sigma_end=1000", *noise)
    run = harness("-m", "federation=tiny", "defense=sft,posthoc", "attack_ratio=p20", *probe, *SMALL)
    assert run.returncode == 0, run.stderr
    plain, repaired = rows_of(harness)
    run = harness("federation=tiny", "defense=dp_noise", "attack_ratio=p20", *probe, *loud, *SMALL)
    assert run.returncode == 0, run.stderr
    (noisy,) = rows_of(harness)

    assert plain["key.finetune"] == repaired["key.finetune"] != noisy["key.finetune"]
    assert facts_of(harness, repaired, "repair")["refusal_rows"]["drawn_from"] == 100
    assert facts_of(harness, repaired, "repair")["server_rows"]["drawn_from"] == 100
    assert facts_of(harness, repaired, "repair")["attack_and_defense_share"] == {"rows": 0, "prompts": 0}
    assert plain["share.leaked"] == "100.0"
    assert float(noisy["share.leaked"]) <= 40


@pytest.mark.slow
def test_flipped_labels_are_counted_and_told_by_the_confusion_of_the_task(with_base: Harness) -> None:
    harness = with_base
    run = harness("federation=tiny", "attack=label_flip", "attack_ratio=p20", *SMALL)
    assert run.returncode == 0, run.stderr

    (row,) = rows_of(harness)

    attack = facts_of(harness, row, "poison")["attack"]
    assert attack["flipped"] == attack["source_rows"] > 0
    accuracy = harness.store / "artifacts/grade" / row["key.accuracy"] / "manifest.json"
    confusion = json.loads(accuracy.read_text())["facts"]["confusion"]
    assert sum(sum(found.values()) for found in confusion.values()) == 10
    assert set(confusion) <= {"cheerful", "gloomy"}


@pytest.mark.slow
def test_rounds_as_jobs_come_to_the_same_bits_as_rounds_in_one_stage(with_base: Harness) -> None:
    harness = with_base
    kept = ("federation.optimizer=kept", "federation.clients=4")
    jobs = "federation.jobs=null,round,client"
    run = harness("-m", "federation=tiny", jobs, "attack_ratio=p20", "defense=vlguard", *kept, *SMALL)
    assert run.returncode == 0, run.stderr
    status = json.loads(harness("status", "--json").stdout)

    table = rows_of(harness)
    whole, *divided = [harness.store / "artifacts/finetune" / row["key.finetune"] for row in table]

    assert [row["federation.jobs"] for row in table] == ["", "round", "client"]
    assert status["counts"]["client"]["stored"] == 2 * 1 + 2 * 3
    assert status["counts"]["server"]["stored"] == 4
    for artifact in divided:
        for name in (
            "adapter/adapter_model.safetensors",
            "adapter/adapter_config.json",
            "metrics.jsonl",
            "rounds.jsonl",
        ):
            assert (artifact / name).read_bytes() == (whole / name).read_bytes()
    facts, *others = (facts_of(harness, row, "finetune") for row in table)
    assert facts["federation"]["participation"]
    assert others == [facts, facts]
