"""A sweep over methods at inference, from the command line to the report."""

import csv
import io
import json

import pytest
from product import QUICK, Harness

MORE = "over_refusal.prompts.rows=40"
SERVED = (
    "serve=none,beat",
    "serve.calibration.candidates=10",
    "defense=sft",
    "attack_ratio=p20",
    "serve.false_positives=0,0.5",
    *QUICK,
    MORE,
)


@pytest.mark.slow
def test_method_at_inference_is_an_axis_with_columns_of_its_own(with_base: Harness) -> None:
    harness = with_base
    run = harness("-m", *SERVED)
    assert run.returncode == 0, run.stderr

    rows = list(csv.DictReader(io.StringIO(harness("report", "--format", "csv").stdout)))

    # The two cells without a method are one.
    assert [(row["serve"], row["serve.false_positives"]) for row in rows] == [
        ("", ""), ("beat", "0.0"), ("beat", "0.5")
    ]  # fmt: skip
    assert all(row["hs"] and row["fa"] and not row["missing"] for row in rows)
    assert len({row["key.finetune"] for row in rows}) == 1
    assert len({row["key.aligned_harm"] for row in rows}) == 1
    assert len({row["key.calibrate"] for row in rows[1:]}) == 1
    for row in rows[1:]:
        for part, answers, column in (
            ("harm", "harm_answers", "rejected_harmful"),
            ("accuracy", "task_answers", "rejected_task"),
            ("over_refusal", "over_refusal_answers", "rejected_harmless"),
        ):
            folder = harness.store / "artifacts/generate" / row[f"key.{answers}"]
            facts = json.loads((folder / "manifest.json").read_text())["facts"]
            verdicts = [json.loads(line)["rejected"] for line in (folder / "verdicts.jsonl").open()]
            assert facts["serve"]["rejected"] == sum(verdicts)
            assert facts["serve"]["probing"]["prompt_passes"] == facts["prompts"] == len(verdicts)
            assert float(row[f"share.{column}"]) == pytest.approx(100 * sum(verdicts) / len(verdicts))
            assert row[f"key.{part}"]
    strict, loose = (float(row["share.rejected_harmless"]) for row in rows[1:])
    assert strict < loose
    # A rejection is a refusal.
    assert float(rows[2]["over_refusal"]) >= loose
    shown = harness("report", "--format", "table", "--strict").stdout
    assert "rejected harmful" in shown
    again = harness("plan", "-m", *SERVED, "--json").stdout
    assert all(count["stored"] == count["total"] for count in json.loads(again)["stages"].values())
