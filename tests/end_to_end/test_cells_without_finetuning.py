"""Cells that end after alignment, from the command line to the report."""

import csv
import io

import pytest
from product import TWO_SCORES, Harness


@pytest.mark.slow
def test_cell_that_ends_after_alignment_is_a_row_with_the_scores_of_the_aligned_model(harness: Harness) -> None:
    short = (*TWO_SCORES, "model.source.steps=20")
    run = harness("-m", "finetune=none,tiny", "attack_ratio=p00", "attack=none", *short)
    assert run.returncode == 0, run.stderr

    ended, tuned = csv.DictReader(io.StringIO(harness("report", "--format", "csv").stdout))

    assert (ended["finetune"], tuned["finetune"]) == ("none", "")
    assert (ended["hs"], ended["fa"]) == (tuned["aligned_hs"], tuned["aligned_fa"])
    assert ended["missing"] == tuned["missing"] == ""
    assert ended["key.align"] == tuned["key.align"]
    assert ended["key.finetune"] == ""
