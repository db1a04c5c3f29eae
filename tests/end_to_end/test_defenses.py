"""Every defense that ships runs from the command line to its table."""

import csv
import io

import pytest
from product import QUICK

from harness.compose import CONF

DEFENSES = sorted(path.stem for path in (CONF / "defense").glob("*.yaml"))


@pytest.mark.slow
def test_every_defense_that_ships_runs_to_its_scores(harness):
    run = harness("-m", f"defense={','.join(DEFENSES)}", "attack_ratio=p20", *QUICK)

    report = harness("report", "--format", "csv")
    table = {row["defense"]: row for row in csv.DictReader(io.StringIO(report.stdout))}
    assert run.returncode == 0, run.stdout + run.stderr
    assert sorted(table) == DEFENSES
    assert len(DEFENSES) >= 8
    assert all(row["hs"] and row["fa"] and row["aligned_hs"] and not row["missing"] for row in table.values())
