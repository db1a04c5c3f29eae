"""Shares that a stage reports, such as a guardrail's leakage: columns of rows and tables, only where there are any."""

import csv
import io
import json

import pytest
from fabricated import Fabricator

from harness.engine.files import write_json
from harness.report import report
from harness.report.data.columns import shares_in, swept_in
from harness.report.output.page import page
from harness.report.stats.results import load_results
from harness.stages.moderate import Moderate

FACTS = {
    ("tiny", 0): {"leakage": 0.5, "false_positives": 0.0, "notes": ["3 of 40 rows could not be judged and were kept"]},
    ("tiny", 1): {"leakage": 0.25, "false_positives": None},
    ("large", 0): {"leakage": 0.0, "false_positives": 1 / 8},
    ("large", 1): None,
}
"""By guardrail and seed; None has not run."""


@pytest.fixture(scope="module")
def maker(tmp_path_factory):
    """A sweep of plain training without a guardrail and with two of them, two seeds each."""
    maker = Fabricator(tmp_path_factory.mktemp("shares") / "store", prompts=20, answers=20, categories=False)
    cells, stages = [], {}
    for guardrail in (None, "tiny", "large"):
        for seed in range(2):
            cell = maker.cell("sft", 0.1, seed, {} if guardrail is None else {"guardrail": guardrail})
            if guardrail is not None:
                key = f"moderate-{guardrail}-{seed}"
                cell["keys"]["moderate"] = key
                stages[key] = {
                    "kind": "moderate",
                    "parents": [],
                    "trains": False,
                    "parallel": False,
                    "attacked": True,
                    "settings": {},
                    "reported_shares": dict(Moderate.reported_shares),
                }
                if (facts := FACTS[guardrail, seed]) is not None:
                    maker._stage("moderate", key)
                    manifest = maker.store.root / "artifacts" / "moderate" / key / "manifest.json"
                    write_json(manifest, json.loads(manifest.read_text()) | {"facts": facts})
            cells.append(cell)
    maker.sweep(cells, stages=stages)
    return maker


@pytest.fixture(scope="module")
def results(maker):
    return load_results(maker.store, maker.store.read_sweep("drawn-1"))


def test_rows_have_the_shares_in_percent_and_none_where_undefined_or_unknown(results):
    assert shares_in(results.rows) == ["share.leakage", "share.false_positives"]
    assert swept_in(results.rows) == ["guardrail"]
    leakage, wrong = (results.rows[name].astype(object) for name in shares_in(results.rows))
    assert leakage.where(leakage.notna(), None).tolist() == [None, None, 50.0, 25.0, 0.0, None]
    assert wrong.where(wrong.notna(), None).tolist() == [None, None, 0.0, None, 12.5, None]


def test_note_of_a_stage_is_in_the_row(results):
    assert results.rows["notes"].tolist()[2] == "moderate: 3 of 40 rows could not be judged and were kept"
    assert results.rows["notes"].tolist()[3] == ""


def test_means_are_over_the_seeds_that_have_a_value(results):
    means = results.means.set_index("guardrail")

    assert means.loc["tiny", "share.leakage"] == 37.5
    assert means.loc["tiny", "share.false_positives"] == 0.0
    assert means.loc["large", "share.leakage"] == 0.0


def test_tables_and_page_show_the_shares(maker, results):
    table = report(maker.store.root, ["drawn"], format="table")
    rows = list(csv.DictReader(io.StringIO(report(maker.store.root, ["drawn"], format="csv"))))
    markdown = report(maker.store.root, ["drawn"], format="md")
    html = page(results)

    heading = next(line for line in table.splitlines() if line.strip().startswith("defense"))
    assert heading.split()[1] == "guardrail"
    assert "leakage" in heading
    assert "false positives" in heading
    (line,) = (line for line in table.splitlines() if line.split()[:2] == ["sft", "tiny"])
    assert "37.5" in line
    assert [row["share.leakage"] for row in rows] == ["", "", "50.0", "25.0", "0.0", ""]
    assert "sft (guardrail tiny), p=0.1: leakage 37.5, false positives 0.0 (percent)." in markdown
    assert '<th scope="col">leakage</th>' in html
    assert Moderate.reported_shares["leakage"].replace("'", "&#39;") in html


def test_sweep_without_such_a_stage_has_no_such_column(findings):
    assert shares_in(findings.rows) == []
    assert "leakage" not in page(findings)
