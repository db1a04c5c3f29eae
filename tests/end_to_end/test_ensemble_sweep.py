"""Ensembles of defenses, from the command line to the report."""

import csv
import io
import json

import pytest
from product import QUICK, Harness

METHODS = ("topla", "topla_learned", "decider")
SWEEP = (f"ensemble={','.join(METHODS)}", "+ensemble.members=[sft,vaccine]", "attack_ratio=p20", *QUICK)


@pytest.mark.slow
def test_ensembles_are_graded_like_any_model_next_to_their_members(with_base: Harness) -> None:
    harness = with_base
    run = harness("-m", *SWEEP)
    assert run.returncode == 0, run.stderr

    rows = list(csv.DictReader(io.StringIO(harness("report", "--format", "csv").stdout)))

    labels = [row["defense"] for row in rows]
    assert labels == ["sft", "vaccine", *(f"{name}(sft+vaccine)" for name in METHODS)]
    for row in rows[2:]:
        assert all(row[name] for name in ("hs", "hs_plus", "fa", "over_refusal"))
        for score, part in (("hs", "harm"), ("fa", "task"), ("over_refusal", "over_refusal")):
            folder = harness.store / "artifacts" / "ensemble" / row[f"key.{part}_answers"]
            facts = json.loads((folder / "manifest.json").read_text())["facts"]
            # The judge grades the text of a member as it graded the member.
            assert abs(float(row[score]) - facts["scores"]["ensemble"]) < 1e-9
            assert len(facts["members"]) == 2
    scored = rows[3]["key.vaccine.score"]
    folder = harness.store / "artifacts" / "score" / scored
    likelihoods = [json.loads(line) for line in (folder / "likelihoods.jsonl").read_text().splitlines()]
    assert len(likelihoods) == 10
    assert all(len(each) == 2 and max(each) < 0 for each in likelihoods)
    page = harness("report", "--format", "html").stdout
    assert 'id="ensembles"' in page
    assert "decider(sft+vaccine)" in page
    again = harness("plan", "-m", *SWEEP, "--json").stdout
    assert all(count["stored"] == count["total"] for count in json.loads(again)["stages"].values())
