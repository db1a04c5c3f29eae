"""A sweep under an attack that is evaluated with and without its trigger, from the command line to the report."""

import csv
import io
import json
from pathlib import Path

import pytest
from product import TWO_SCORES, Harness

DOUBLES = str(Path(__file__).parents[1] / "front")
TRIGGERED = ("targets=[probing.]", "attack.method._target_=probing.Triggered")


@pytest.mark.slow
def test_each_question_has_rows_and_a_table_of_its_own(with_base: Harness) -> None:
    harness = with_base
    run = harness("-m", "defense=sft,booster", "attack_ratio=p00,p20", *TRIGGERED, *TWO_SCORES, PYTHONPATH=DOUBLES)
    assert run.returncode == 0, run.stderr

    table = list(csv.DictReader(io.StringIO(harness("report", "--format", "csv").stdout)))
    assert [(row["defense"], row["ratio"], row["probe"]) for row in table] == [
        (defense, ratio, probe)
        for defense in ("sft", "booster")
        for ratio in ("0.0", "0.2")
        for probe in ("", "triggered")
    ]
    assert all(row["hs"] and row["aligned_hs"] and not row["missing"] for row in table)
    assert [bool(row["fa"]) for row in table] == [True, False] * 4
    assert len({row["key.finetune"] for row in table}) == 4
    shown = harness("report", "--format", "md", "--strict").stdout
    captions = [line for line in shown.splitlines() if line.startswith("task ")]
    assert captions == ["task tiny, model tiny, attack mix", "task tiny, model tiny, attack mix, probe triggered"]
    headings = [line for line in shown.splitlines() if line.startswith("| defense")]
    assert ["FA p=0.2" in heading for heading in headings] == [True, False]
    assert "encoding.fields.suffix is now, not unset" in shown
    asked = json.loads((harness.store / "specs" / f"{table[1]['key.harm_answers']}.json").read_text())
    assert asked["encoding"]["suffix"] == " now"
    report = json.loads(harness("report", "--format", "json").stdout)
    probes = [
        {report["table"][each[side]]["probe"] for side in ("line", "other")}
        for each in report["comparisons"]
        if each["score"] == "hs"
    ]
    assert sorted(map(str, probes)) == ["{'triggered'}"] * 2 + ["{None}"] * 2
