"""Real rows through the whole pipeline: AdvBench prompts and SST-2, on a tiny model that knows none of their words."""

import json
import os
from pathlib import Path

import pytest
from product import QUICK

DATA = Path(os.environ.get("HARNESS_DATA", Path(__file__).parents[3] / "shared" / "data"))

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="no real data: HARNESS_DATA is not set")

REAL = ("corpus=advbench", "task=sst2", "judge=keywords", "model.encoding.max_length=128", "attack_ratio=p20")


@pytest.mark.slow
def test_cell_on_real_rows_is_stored_with_exact_counts_and_no_overlap(with_base):
    harness = with_base
    run = harness(*REAL, *QUICK, HARNESS_DATA=str(DATA))
    manifests = [json.loads(path.read_text()) for path in harness.store.glob("artifacts/*/*/manifest.json")]
    facts = {manifest["kind"]: manifest["facts"] for manifest in manifests}

    assert run.returncode == 0, run.stderr
    assert facts["poison"]["counts"] == {"harmful": 8, "benign": 32}
    assert facts["finetune"]["attack_and_defense_share"] == {"rows": 0, "prompts": 0}
    assert all(m["facts"]["shared_with_training"]["rows"] == 0 for m in manifests if m["kind"] == "generate")
    assert "sst2" in run.stdout


@pytest.mark.slow
def test_doctor_finds_and_fetches_the_files_of_an_experiment(harness):
    found = harness("doctor", HARNESS_DATA=str(DATA))
    fetched = harness("doctor", "--fetch", "smollm2", HARNESS_DATA=str(DATA))

    assert found.returncode == fetched.returncode == 0, fetched.stderr
    assert "yes   advbench" in found.stdout
    for name in ("advbench_prompts.csv", "sst2_train.tsv", "sst2_validation.tsv"):
        assert name in fetched.stdout
