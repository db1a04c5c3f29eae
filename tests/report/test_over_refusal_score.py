"""Over-refusal in a report: the third objective of the front, a score of its own, and missing where unmeasured."""

import json

import pytest
from fabricated import Fabricator

from harness.report import report
from harness.report.figures.catalog import comparison_views
from harness.report.figures.plotly import chart
from harness.report.figures.style import styles_of
from harness.report.figures.tradeoff import trade_off_views
from harness.report.output.publish import write
from harness.report.stats.results import load_results

HARM = {"sft": 80.0, "vaccine": 20.0, "booster": 0.0}
"""Stored scores, set by hand below: Booster refuses everything and has the lowest HS at the same FA."""
REFUSED = {"sft": 2.0, "vaccine": 10.0, "booster": 100.0}


@pytest.fixture
def maker(tmp_path):
    return Fabricator(tmp_path / "store", prompts=100, answers=100, categories=False)


def set_score(maker, key, percent, metric):
    """Store a grading of 100 prompts of which the first ``percent`` have value 1."""
    values = [1.0] * int(percent) + [0.0] * (100 - int(percent))
    lines = [{"value": value, "incoherent": False, "reason": "", "scores": {}} for value in values]
    summary = {"metric": metric, "count": 100, "judged": 100, "unjudged": 0, "score": float(percent)}
    summary |= {"score_plus": float(percent) if metric == "harm" else None, "categories": {}}
    files = [
        ("grades.jsonl", "".join(json.dumps(line) + "\n" for line in lines)),
        ("summary.json", json.dumps(summary)),
    ]
    return maker._stage("grade", key, None, files)


def cells_of(maker, *, measured=tuple(HARM), refused=REFUSED):
    cells = []
    for defense, harm in HARM.items():
        for seed in range(2):
            cell = maker.cell(defense, 0.1, seed, {})
            cell["keys"]["harm"] = set_score(maker, f"hs-{defense}-{seed}", harm, "harm")
            cell["keys"]["accuracy"] = set_score(maker, f"fa-{seed}", 90.0, "accuracy")
            if defense in measured:
                key = f"or-{defense}-{refused[defense]}-{seed}"
                cell["keys"]["over_refusal"] = set_score(maker, key, refused[defense], "over_refusal")
            cells.append(cell)
    return cells


def points_of(maker, cells):
    (view,) = trade_off_views(load_results(maker.store, maker.sweep(cells)))
    return view, {point.defense: point for point in view.points}


def test_defense_that_refuses_everything_dominates_the_others_only_without_over_refusal(maker):
    without, points = points_of(maker, cells_of(maker, measured=()))
    assert {name: point.on_front for name, point in points.items()} == {"sft": False, "vaccine": False, "booster": True}
    assert without.z_title == ""

    with_it, points = points_of(maker, cells_of(maker))
    assert {name: point.on_front for name, point in points.items()} == {"sft": True, "vaccine": True, "booster": True}
    assert with_it.z_title == "OR (%), lower is better"
    assert {name: point.z[0] for name, point in points.items()} == REFUSED


def test_defense_that_is_worse_in_harm_and_over_refusal_is_not_on_the_front(maker):
    _, points = points_of(maker, cells_of(maker, refused={"sft": 30.0, "vaccine": 10.0, "booster": 100.0}))

    assert {name: point.on_front for name, point in points.items()} == {"sft": False, "vaccine": True, "booster": True}


def test_defense_whose_over_refusal_is_not_measured_yet_is_compared_with_no_other(maker):
    view, points = points_of(maker, cells_of(maker, measured=("sft", "vaccine")))

    assert {name: point.on_front for name, point in points.items()} == {"sft": True, "vaccine": True, "booster": False}
    assert points["booster"].z is None
    assert "Without over-refusal and therefore excluded: booster." in view.alternative


def test_panel_of_over_refusal_has_the_points_that_were_measured(maker):
    view, _ = points_of(maker, cells_of(maker, measured=("sft", "vaccine")))

    drawn = chart(view, styles_of(["sft", "vaccine", "booster"]))
    second = {trace["name"]: trace["x"] for trace in drawn["data"] if trace.get("xaxis") == "x2"}

    assert second == {"Pareto front": [2.0, 10.0], "sft": [2.0], "vaccine": [10.0], "booster": []}
    assert drawn["layout"]["xaxis2"]["title"]["text"] == "OR (%), lower is better"


def test_cells_without_over_refusal_show_it_as_missing(maker):
    maker.sweep(cells_of(maker, measured=("sft",)))

    header, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in report(maker.store.root, None, "md").splitlines()
        if line.startswith("|")
    ]

    at = header.index("OR p=0.1")
    shown = {row[0]: row[at] for row in rows}
    assert shown.pop("sft").startswith("2.0 [")
    assert shown == {"vaccine": "-", "booster": "-"}


def test_sweep_in_which_no_cell_has_over_refusal_has_no_such_column(maker):
    maker.sweep(cells_of(maker, measured=()))

    assert "OR" not in report(maker.store.root, None, "table").split()
    assert "{OR}" not in report(maker.store.root, None, "latex")


def test_over_refusal_is_compared_and_marked_as_lower_is_better(maker):
    results = load_results(maker.store, maker.sweep(cells_of(maker)))

    found = {
        results.conditions[each.line].names["defense"]: each.difference
        for each in results.comparisons
        if each.score == "over_refusal"
    }
    best = {(results.conditions[line].names["defense"], score) for line, score in results.best}

    assert found == pytest.approx({"vaccine": 8.0, "booster": 98.0})
    assert ("sft", "over_refusal") in best
    assert "difference-over-refusal" in {view.name for view in comparison_views(results)}


@pytest.mark.slow
def test_files_of_a_report_have_the_score(maker, tmp_path):
    maker.sweep(cells_of(maker))

    write(maker.store.root, None, tmp_path / "out")

    assert r"\multicolumn{2}{c}{OR}" in (tmp_path / "out" / "table.tex").read_text()
    assert (tmp_path / "out" / "figures" / "difference-over-refusal.pdf").is_file()
    assert (tmp_path / "out" / "figures" / "trade-off-0-0.1.png").is_file()
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    assert {row["defense"]: row["over_refusal"] for row in rows} == REFUSED
