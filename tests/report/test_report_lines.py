"""Lines: which cells are one, whatever was said of them and however far they have come."""

import copy
import json
import shutil

import numpy as np
import pytest
from composed import compose
from fabricated import HARM, PROTOCOL, Fabricator

from harness.config.build import cells_of
from harness.engine.manifest import FileRecord, Manifest
from harness.errors import ConfigError
from harness.report import report
from harness.report.data.comparability import check_same_protocol
from harness.report.data.conditions import condition_name
from harness.report.data.targets import Target
from harness.report.stats.labels import compared_names, condition_names, remarks
from harness.report.stats.results import load_results

TRAINED = ("align", "finetune")


@pytest.fixture
def maker(tmp_path):
    return Fabricator(tmp_path / "store", prompts=60, answers=40, categories=False)


def found(maker, cells):
    return load_results(maker.store, maker.sweep(cells))


def with_spec(maker, cell, part, **fields):
    """Say in the spec of a stage what it was made of."""
    path = maker.store.root / "specs" / f"{cell['keys'][part]}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return cell


def on_processes(maker, cell, number, parts=TRAINED):
    for part in parts:
        path = maker.store.root / "artifacts" / part / cell["keys"][part] / "manifest.json"
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps(manifest | {"provenance": manifest["provenance"] | {"processes": number}}))
    return cell


def without(maker, cell, *parts):
    """Take results away, as if the stages had not run."""
    for part in parts:
        shutil.rmtree(maker.store.root / "artifacts" / (part if part in TRAINED else "grade") / cell["keys"][part])
    return cell


def graded(maker, cell, part, verdicts):
    """Put other verdicts under the grade of a cell."""
    folder = maker.store.root / "artifacts" / "grade" / cell["keys"][part]
    records = [{"value": value, "incoherent": False, "reason": "", "scores": {}} for value in verdicts]
    judged = [value for value in verdicts if value is not None]
    score = 100 * sum(judged) / len(judged)
    summary = {"count": len(verdicts), "unjudged": len(verdicts) - len(judged), "score": score, "score_plus": score}
    (folder / "grades.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "summary.json").write_text(json.dumps(summary))
    files = {name: FileRecord.of(folder / name) for name in ("grades.jsonl", "summary.json")}
    (folder / "manifest.json").write_text(json.dumps(Manifest(key=folder.name, kind="grade", files=files).json()))
    return cell


def boosted(maker, lamb, seed):
    """A cell of Booster that says nothing of its lambda, as one of a preset."""
    cell = maker.cell("booster", 0.1, seed, {"defense.align.lamb": lamb}) | {"swept": {}}
    method = {"_target_": "harness.defenses.booster.Booster", "lamb": lamb, "alpha": 0.1}
    return with_spec(maker, cell, "align", method=method, seed=seed)


@pytest.mark.parametrize("sign", ["", "++"])
def test_values_that_are_added_are_swept_like_those_that_are_set(sign):
    cells = cells_of(compose(["experiment=tiny", "defense=booster", f"{sign}defense.align.lamb=1,5", "seed=0,1"]))

    assert [cell.swept for cell in cells] == [{"defense.align.lamb": lamb} for lamb in (1, 1, 5, 5)]


def test_presets_of_one_label_are_lines_of_their_own(maker):
    cells = [boosted(maker, lamb, seed) for lamb in (1.0, 50.0) for seed in (0, 1)]
    cells += [maker.cell("sft", 0.1, seed, {}) for seed in (0, 1)]

    findings = found(maker, cells)

    assert findings.means["defense.align.lamb"].tolist()[:2] == [1.0, 50.0]
    assert findings.means["hs_n"].tolist() == [2, 2, 2]
    assert condition_names(findings.means, findings.rows) == ["booster (lamb 1)", "booster (lamb 50)", "sft"]
    assert [each.seeds for each in findings.comparisons if each.score == "hs"] == [2, 2]
    assert findings.comparisons[1].difference == pytest.approx(findings.means["hs"][1] - findings.means["hs"][2])


def test_cells_that_no_spec_tells_apart_are_not_averaged(maker):
    cells = [maker.cell("booster", 0.1, seed, {"lamb": lamb}) | {"swept": {}} for lamb in (1, 50) for seed in (0, 1)]

    findings = found(maker, [*cells, maker.cell("sft", 0.1, 0, {})])

    assert findings.means["hs_n"].tolist() == [1] * 5
    assert findings.means["stages"].tolist()[:4] == [cell["keys"]["align"] for cell in cells]
    assert {each.line for each in findings.comparisons} == {0, 2}, "those with the seed of plain training"


def test_setting_that_follows_the_seed_makes_no_lines(maker):
    cells = [
        with_spec(maker, maker.cell("sft", 0.1, seed, {}), "align", seed=seed, refusal={"rows": 5000, "shuffle": seed})
        for seed in range(3)
    ]

    assert found(maker, cells).means["hs_n"].tolist() == [3]


def test_unfinished_cells_join_the_line_that_they_match_otherwise(maker):
    cells = [maker.cell(defense, 0.1, seed, {}) for defense in ("sft", "vaccine") for seed in range(3)]
    for cell in cells:
        on_processes(maker, cell, 4)
    without(maker, cells[0], "align", "finetune", "harm", "accuracy", "aligned_harm", "aligned_accuracy")
    without(maker, cells[5], "finetune", "harm", "accuracy")

    findings = found(maker, cells)

    assert findings.means[["defense", "seeds", "missing", "note"]].to_numpy().tolist() == [
        ["sft", 2, 1, ""],
        ["vaccine", 3, 1, ""],
    ]
    assert len(findings.comparisons) == 3
    check_same_protocol(findings.rows)


def test_lines_without_any_result_depart_from_nothing(maker):
    cells = [on_processes(maker, maker.cell(defense, 0.1, 0, {}), 4) for defense in ("sft", "vaccine")]
    without(maker, cells[0], "align", "finetune", "harm", "accuracy")
    alone = copy.deepcopy(cells[0])
    alone["labels"]["task"] = "other"

    findings = found(maker, [*cells, alone])

    assert findings.means["note"].tolist() == ["", "", ""]


def test_unfinished_cell_joins_those_of_its_line_before_others(maker):
    cells = [on_processes(maker, maker.cell("sft", 0.1, seed, {}), 4) for seed in range(3)]
    cells += [on_processes(maker, maker.cell("vaccine", 0.1, seed, {}), 2) for seed in range(2)]
    without(maker, cells[3], "finetune", "harm", "accuracy", "align")

    means = found(maker, cells).means

    assert means["missing"].tolist() == [0, 1]
    assert means["note"].tolist()[1] == "align.processes is 2, not 4; finetune.processes is 2, not 4"


def test_unfinished_line_that_was_trained_otherwise_departs_in_nothing_unknown(maker):
    cells = [on_processes(maker, maker.cell("sft", 0.1, seed, {}), 4) for seed in range(2)]
    short = with_spec(maker, maker.cell("vaccine", 0.1, 0, {}), "finetune", budget={"epochs": 5})
    without(maker, short, "finetune", "harm", "accuracy")

    notes = found(maker, [*cells, on_processes(maker, short, 4, ["align"])]).means["note"].tolist()

    assert "finetune.budget.epochs is 5, not 20" in notes[1]
    assert "processes" not in notes[1]


def test_size_of_a_fresh_adapter_is_compared(maker):
    adapter = {"_target_": "harness.models.adapter.Lora", "rank": 32}
    cells = [maker.cell(defense, 0.1, 0, {}) for defense in ("sft", "vaccine")]
    for cell, rank in zip(cells, (32, 8), strict=True):
        with_spec(maker, cell, "align", adapter=adapter)
        with_spec(maker, cell, "finetune", protocol="double", adapter=adapter | {"rank": rank})

    findings = found(maker, cells)

    assert findings.means["note"].tolist() == ["", "finetune.fresh.rank is 8, not 32"]


def test_fresh_adapter_that_is_the_aligned_one_goes_with_its_column(maker):
    cells = [maker.cell("sft", 0.1, 0, {"align.adapter.rank": rank}) for rank in (8, 32)]
    for cell in cells:
        adapter = {"rank": cell["swept"]["align.adapter.rank"]}
        with_spec(maker, cell, "align", adapter=adapter)
        with_spec(maker, cell, "finetune", protocol="double", adapter=adapter)

    assert found(maker, cells).means["note"].tolist() == ["", ""]


def of_code(maker, cell, digest):
    """Say in the manifest of the alignment which code its external method had."""
    path = maker.store.root / "artifacts" / "align" / cell["keys"]["align"] / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["provenance"] |= {"classes": {"lab.Mine": {"code": digest}}}
    path.write_text(json.dumps(manifest))
    return cell


def test_results_of_changed_code_are_not_averaged(maker):
    cells = [of_code(maker, maker.cell("booster", 0.1, seed, {}), "one" if seed < 2 else "two") for seed in range(3)]
    # Of a version that did not write it down, and without such a method: they agree with either.
    cells += [maker.cell("booster", 0.1, 3, {}), maker.cell("sft", 0.1, 0, {})]

    findings = found(maker, cells)

    assert findings.means["seeds"].tolist() == [3, 1, 1]
    assert findings.means["note"].tolist() == ["", "lab.Mine.code is two, not one", ""]
    with pytest.raises(ConfigError, match=r"lab\.Mine\.code is two, not one"):
        check_same_protocol(findings.rows)


def test_baseline_with_two_protocols_is_the_one_of_the_lines_own(maker):
    cells = [on_processes(maker, maker.cell(d, 0.1, s, {}), 4) for d in ("sft", "vaccine") for s in (0, 1)]
    cells += [on_processes(maker, maker.cell(d, 0.1, s, {}), 2) for d in ("sft", "booster") for s in (2, 3)]
    cells += [on_processes(maker, maker.cell("sft", 0.1, s, {}), 1) for s in (4, 5)]

    findings = found(maker, cells)
    pairs = {(each.line, each.other) for each in findings.comparisons}

    assert [str(findings.means["defense"][line]) for line, _ in sorted(pairs)] == ["vaccine", "booster"]
    assert all(findings.means["note"][line] == findings.means["note"][other] for line, other in pairs)
    assert findings.left_out == [
        "Not compared with sft (others are compared with the one that is nearer in protocol): sft [b], p=0.1."
    ]
    assert set(compared_names(findings.means, findings.rows, findings.comparisons)) == {
        "vaccine",
        "booster [a] against sft [a]",
    }
    assert "booster [a] against sft [a]" in report(maker.store.root, None, "html")
    assert "nearer in protocol" in report(maker.store.root, None, "html")


def test_baseline_of_other_protocols_is_the_most_common_one(maker):
    cells = [on_processes(maker, maker.cell("sft", 0.1, 0, {}), 1)]
    cells += [on_processes(maker, maker.cell("sft", 0.1, seed, {}), 4) for seed in (1, 2)]
    cells += [on_processes(maker, maker.cell("vaccine", 0.1, seed, {}), 2) for seed in range(3)]

    findings = found(maker, cells)

    assert {(each.line, each.other) for each in findings.comparisons} == {(2, 1)}


def test_line_that_was_judged_otherwise_is_said_to_be_left_out(maker):
    cells = [maker.cell(defense, 0.1, seed, {}) for defense in ("sft", "vaccine") for seed in (0, 1)]
    for cell in cells[2:]:
        cell["protocol"] = PROTOCOL | {"judge.version": 2}
    apart = [maker.cell("booster", 0.3, 0, {})]

    findings = found(maker, [*cells, *apart])

    assert findings.comparisons == ()
    assert findings.left_out == [
        "Not compared with sft (sft was evaluated differently): vaccine [a], p=0.1.",
        "Not compared with sft (no sft of the same task, model, attack, ratio and settings): booster, p=0.3.",
    ]


DISGUISE = "attack.method.disguise"


def disguised(maker, cell, values):
    """Return the cell once for each value of a setting that does not act in it."""
    return [copy.deepcopy(cell) | {"swept": {DISGUISE: value}} for value in values]


def test_lines_that_share_their_results_are_one_hypothesis(maker, monkeypatch):
    monkeypatch.setitem(HARM, "booster", 0.02)
    monkeypatch.setitem(HARM, "sft", 0.6)
    once = [maker.cell(defense, 0.0, seed, {}) for defense in ("sft", "vaccine", "booster") for seed in range(3)]
    cells = {values: [twin for cell in once for twin in disguised(maker, cell, values)] for values in ("y", "yf")}

    alone, doubled = (found(maker, cells[values]) for values in ("y", "yf"))

    def adjusted(findings):
        lines = [condition.names["defense"] for condition in findings.conditions]
        return {(lines[each.line], each.score): each.p_holm for each in findings.comparisons}

    assert len(doubled.comparisons) == 2 * len(alone.comparisons)
    assert adjusted(doubled) == adjusted(alone)
    best = {(alone.conditions[line].names["defense"], score) for line, score in alone.best}
    assert ("booster", "hs") in best
    twice = [(doubled.conditions[line].names["defense"], score) for line, score in doubled.best]
    assert sorted(twice) == sorted([*best, *best])


def test_line_whose_results_are_those_of_the_baseline_is_not_compared(maker):
    cells = [maker.cell("sft", 0.1, seed, {}) for seed in range(2)]
    same = [copy.deepcopy(cell) for cell in cells]
    for cell in same:
        cell["labels"]["defense"] = "lisa"

    findings = found(maker, [*cells, *same])

    assert findings.comparisons == ()
    assert findings.best == frozenset()
    assert findings.left_out == ["Not compared with sft (its results are those of sft): lisa, p=0.1."]


def test_line_that_only_leads_by_its_lucky_seeds_is_not_best(maker):
    chance = np.random.default_rng(1)
    hard = np.argsort(chance.standard_normal(60))

    def verdicts(count):
        values = np.zeros(60)
        values[hard[:count]] = 1
        return values.tolist()

    lucky = [maker.cell("booster", 0.1, seed, {}) for seed in range(6)]
    steady = [maker.cell("vaccine", 0.1, seed, {}) for seed in range(4)]
    for cell, count in zip(lucky, (30, 31, 30, 31, 0, 0), strict=True):
        graded(maker, cell, "harm", verdicts(count))
    for cell, count in zip(steady, (23, 24, 23, 24), strict=True):
        graded(maker, cell, "harm", verdicts(count))

    findings = found(maker, [*lucky, *steady])

    assert findings.means["hs"][0] < findings.means["hs"][1], "over all of its seeds"
    assert (0, "hs") not in findings.best


def test_average_is_over_the_ratios_of_the_board_only(maker):
    cells = [maker.cell("sft", ratio, seed, {}) for ratio in (0.0, 0.1, 0.2) for seed in (0, 1)]
    cells += [maker.cell("vaccine", ratio, seed, {}) for ratio in (0.1, 0.2) for seed in (0, 1)]

    (board,) = found(maker, cells).paper_tables
    (other,) = found(
        maker, [cell for cell in cells if cell["labels"]["ratio"] or cell["labels"]["seed"] > 1]
    ).paper_tables
    (apart,) = found(
        maker, [*[c for c in cells if c["labels"]["ratio"] < 0.2 and c["labels"]["defense"] == "sft"], *cells[6:]]
    ).paper_tables

    assert [("hs", "average") in row.cells for row in board.rows] == [True, False]
    assert [("hs", "average") in row.cells for row in other.rows] == [True, True]
    assert list(apart.columns) == ["aligned", "0", "0.1", "0.2"]


def test_average_is_that_of_the_ratios_though_one_has_gaps(maker):
    cells = [maker.cell("sft", ratio, seed, {}) for ratio in (0.0, 0.2) for seed in (0, 1)]
    for cell in cells[2:]:
        graded(maker, cell, "harm", [None] * 20 + [1.0] * 20 + [0.0] * 20)

    (board,) = found(maker, cells).paper_tables
    figures = board.rows[0].cells

    assert figures["hs", "0.2"].mean == 50
    assert figures["hs", "average"].mean == pytest.approx((figures["hs", "0"].mean + 50) / 2)


def test_unjudged_answers_of_a_shared_grade_are_told_once(maker):
    cells = [maker.cell("sft", ratio, 0, {}) for ratio in (0.0, 0.1, 0.2)]
    graded(maker, cells[0], "aligned_harm", [0.0] * 59 + [None])

    findings = found(maker, cells)

    notes = remarks(findings.rows, findings.means)
    assert "1 generations could not be judged and are excluded from aligned HS." in notes


def test_every_line_has_its_own_verdict_on_a_published_number(maker, monkeypatch):
    target = Target(
        name="made_1", source="a paper", labels={"defense": "sft"}, settings={}, protocol={}, scores={"hs": 10.0},
        tolerance={"hs": 3.0},
    )  # fmt: skip
    monkeypatch.setattr("harness.report.stats.results.read_targets", lambda: [target])
    cells = [maker.cell("sft", 0.1, 0, {"finetune.budget.learning_rate": rate}) for rate in (1e-5, 1e-3)]
    for cell, harmful in zip(cells, (6, 40), strict=True):
        graded(maker, cell, "harm", [1.0] * harmful + [0.0] * (60 - harmful))

    findings = found(maker, [*cells, maker.cell("vaccine", 0.1, 0, {})])
    told = [note for note in remarks(findings.rows, findings.means) if "published" in note]

    assert told == [
        "sft (learning_rate 1e-05), p=0.1: published HS 10.0 (a paper): match.",
        "sft (learning_rate 0.001), p=0.1: published HS 10.0 (a paper): off.",
    ]
    assert condition_names(findings.means, findings.rows)[2] == "vaccine", "what was published is no setting"


def test_settings_with_one_ending_are_named_as_far_as_they_differ(maker):
    cells = [maker.cell("booster", 0.1, 0, {name: 2}) for name in ("defense.align.rho", "defense.finetune.rho")]

    (board,) = found(maker, cells).paper_tables

    assert [row.name for row in board.rows] == ["booster (align.rho 2)", "booster (finetune.rho 2)"]
    assert (
        condition_name({"defense": "lisa", "defense.finetune.rho": 0.5}, ["defense.finetune.rho"]) == "lisa (rho 0.5)"
    )
