"""An ensemble of defenses, from the command line to the report."""

import csv
import io
import json

import pytest
from product import QUICK, Harness

SWEEP = ("ensemble=topla", "ensemble.members=[sft,vaccine,booster]", "attack_ratio=p20", "seed=0,1", *QUICK)


@pytest.mark.slow
def test_ensemble_is_graded_like_any_model_next_to_its_members(harness: Harness) -> None:
    run = harness("-m", *SWEEP)
    assert run.returncode == 0, run.stderr

    rows = list(csv.DictReader(io.StringIO(harness("report", "--format", "csv").stdout)))

    assert [row["defense"] for row in rows] == ["sft", "vaccine", "booster", "topla(sft+vaccine+booster)"] * 2
    for row in rows[3::4]:
        assert all(row[name] for name in ("hs", "hs_plus", "fa", "over_refusal"))
        for score, part in (("hs", "harm"), ("fa", "task"), ("over_refusal", "over_refusal")):
            folder = harness.store / "artifacts" / "ensemble" / row[f"key.{part}_answers"]
            facts = json.loads((folder / "manifest.json").read_text())["facts"]
            # The judge grades the text of a member as it graded the member.
            assert abs(float(row[score]) - facts["scores"]["ensemble"]) < 1e-9
            assert len(facts["members"]) == 3
    page = harness("report", "--format", "html")
    assert "topla(sft+vaccine+booster)" in page.stdout
    again = harness("plan", "-m", *SWEEP, "--json").stdout
    assert all(count["stored"] == count["total"] for count in json.loads(again)["stages"].values())
