"""The table of ensembles: means of what stages state, gains by hand, and sentences that the interval allows."""

import json

import pytest
from fabricated import Fabricator

from harness.report.figures.curves import training_views
from harness.report.figures.diversity import diversity_views
from harness.report.output.ensemble_table import ensemble_table
from harness.report.output.formats import render
from harness.report.output.page import page
from harness.report.stats.results import load_results

SCORES = {
    "ensemble": 10.0, "best_member": 12.0, "all_members": 30.0, "score_only": 11.0, "mean_member": 40.0,
    "random_subset": 35.0, "oracle": 2.0,
}  # fmt: skip
PROMPTS = 60


@pytest.fixture
def found(tmp_path):
    """Results of a sweep with an ensemble whose grades differ from its best member's on the given prompts, per seed."""

    def found(better, worse, seeds=3):
        maker = Fabricator(tmp_path / "store", prompts=PROMPTS, answers=20, categories=False)
        cells = []
        for seed in range(seeds):
            members = [maker.cell(defense, 0.2, seed, {}) for defense in ("sft", "vaccine")]
            key = f"ensemble-{seed}"
            grades = [{"ensemble": float(row in worse), "best_member": float(row in better)} for row in range(PROMPTS)]
            rows = "".join(json.dumps({"grades": grade}) + "\n" for grade in grades)
            maker._stage("ensemble", key, None, [("fusion.jsonl", rows), ("answers.jsonl", "")])
            path = maker.store.root / "artifacts" / "ensemble" / key / "manifest.json"
            facts = {"scores": SCORES, "diversity": 0.25, "pool": 2.5}
            path.write_text(json.dumps(json.loads(path.read_text()) | {"facts": facts}))
            own = {**members[0], "labels": {**members[0]["labels"], "defense": "topla(sft+vaccine)"}}
            own["keys"] = {**members[0]["keys"], "harm_answers": key}
            cells += [*members, own]
        return load_results(maker.store, maker.sweep(cells))

    return found


def test_gain_is_the_mean_of_what_the_ensemble_does_better_on_the_same_prompts(found):
    results = found(better=range(20), worse=range(40, 43))

    (each,) = results.ensembles

    assert (each.score, each.seeds, each.defense) == ("hs", 3, "topla(sft+vaccine)")
    assert each.gain == pytest.approx(100 * (20 - 3) / PROMPTS)
    assert 0 < each.low < each.gain < each.high
    assert each.verdict == "better than its best member"
    assert each.scores == SCORES


@pytest.mark.parametrize(
    ("better", "worse", "verdict"),
    [
        (range(5), range(40, 45), "no gain over its best member"),
        (range(1), range(40, 58), "worse than its best member"),
    ],
)
def test_as_many_answers_better_as_worse_are_no_gain_and_more_worse_ones_are_a_loss(found, better, worse, verdict):
    assert found(better, worse).ensembles[0].verdict == verdict


def test_single_seed_has_no_interval_and_no_verdict_of_a_gain(found):
    (each,) = found(range(20), (), seeds=1).ensembles

    assert each.low != each.low
    assert each.verdict == "no gain over its best member"


def test_every_format_has_the_table_with_the_controls(found):
    results = found(range(20), ())
    names = ["sft", "vaccine", "topla(sft+vaccine)"]

    (line,) = ensemble_table(results.ensembles, names).lines

    assert line.cells[:2] == ("topla(sft+vaccine)", "HS 10.0")
    assert line.cells[2].startswith("33.3 [")
    assert line.cells[3:9] == ("12.0", "40.0", "30.0", "11.0", "35.0", "2.0")
    assert line.cells[9:] == ("0.25", "2.5")
    for text in (render(results, "table"), render(results, "md"), page(results)):
        assert "oracle" in text
        assert "better than its best member" in text
    assert "better than its best member" in render(results, "latex")
    assert json.loads(render(results, "json"))["ensembles"][0]["scores"] == SCORES


def test_sweep_without_ensembles_has_no_table(tmp_path):
    maker = Fabricator(tmp_path / "store", prompts=20, answers=20, categories=False)
    results = load_results(maker.store, maker.sweep([maker.cell("sft", 0.2, 0, {})]))

    assert results.ensembles == []
    assert ensemble_table([], []) is None
    assert "oracle" not in render(results, "table") + render(results, "md")
    assert 'id="ensembles"' not in page(results)


def test_ensemble_is_no_row_of_the_matrix_of_shared_failures_and_has_no_training_curve(found):
    results = found(range(20), ())

    (view,) = diversity_views(results)

    assert view.x == ["sft", "vaccine"]
    assert view.hints == [["", "sft and vaccine: measured"], ["sft and vaccine: if they were independent", ""]]
    assert {series.name for view in training_views(results) for series in view.series} == {"sft", "vaccine"}
