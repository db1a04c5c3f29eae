"""A sweep over guardrails, from the command line to the report."""

import csv
import io
import json

import pytest
from product import TWO_SCORES, Harness

GUARDED = ("guardrail=none,tiny", "defense=sft", "attack_ratio=p00,p20", *TWO_SCORES)


@pytest.mark.slow
def test_guardrail_is_an_axis_with_columns_of_its_own(with_base: Harness) -> None:
    harness = with_base
    run = harness("-m", *GUARDED)
    assert run.returncode == 0, run.stderr

    rows = list(csv.DictReader(io.StringIO(harness("report", "--format", "csv").stdout)))

    assert [(row["guardrail"], row["ratio"]) for row in rows] == [
        ("", "0.0"), ("", "0.2"), ("tiny", "0.0"), ("tiny", "0.2")
    ]  # fmt: skip
    assert all(row["hs"] and row["fa"] and not row["missing"] for row in rows)
    assert len({row["key.align"] for row in rows}) == 1
    assert len({row["key.guard"] for row in rows if row["guardrail"]}) == 1
    for row in rows[2:]:
        facts = json.loads((harness.store / "artifacts/moderate" / row["key.moderate"] / "manifest.json").read_text())[
            "facts"
        ]
        sent, kept = facts["sent"], facts["kept"]
        assert sent == {"task": 40, "attack": 0} if row["ratio"] == "0.0" else {"task": 32, "attack": 8}
        leakage = "" if not sent["attack"] else str(100 * kept["attack"] / sent["attack"])
        assert row["share.leakage"] == leakage
        assert float(row["share.false_positives"]) == 100 * (1 - kept["task"] / sent["task"])
    # The guard removes some of the attacker's rows: its policy covers three families of four.
    assert float(rows[3]["share.leakage"]) < 100
    shown = harness("report", "--format", "table", "--strict").stdout
    assert "leakage" in shown
    assert "guardrail" in shown
    again = harness("plan", "-m", *GUARDED, "--json").stdout
    assert all(count["stored"] == count["total"] for count in json.loads(again)["stages"].values())


@pytest.mark.slow
def test_cell_whose_rows_are_all_removed_ends_as_the_aligned_model_and_says_so(with_base: Harness) -> None:
    harness = with_base
    run = harness(
        "guardrail=tiny", "guardrail.threshold=0", "+guardrail.source.steps=2", "attack_ratio=p20", *TWO_SCORES
    )
    assert run.returncode == 0, run.stderr

    (row,) = csv.DictReader(io.StringIO(harness("report", "--format", "csv").stdout))

    assert (row["share.leakage"], row["share.false_positives"]) == ("0.0", "100.0")
    assert "finetune: no row was left to train on: the model is the aligned one" in row["notes"]
    assert (row["hs"], row["fa"]) == (row["aligned_hs"], row["aligned_fa"])
    page = harness("report", "--format", "html").stdout
    assert "no row was left to train on" in page
