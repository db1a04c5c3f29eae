"""Paired comparisons, boards, comparability and cost, on a sweep whose numbers were drawn."""

import copy
import json

import pytest
from fabricated import Fabricator

from harness.errors import ConfigError
from harness.report import report
from harness.report.figures.tradeoff import robust_regions
from harness.report.stats import cost
from harness.report.stats.results import load_results


@pytest.fixture
def maker(tmp_path):
    return Fabricator(tmp_path / "store", prompts=400, answers=40, categories=False)


def test_comparison_is_paired_on_seeds_and_prompts(findings):
    found = [each for each in findings.comparisons if each.score == "hs"]
    first = found[0]
    line, other = findings.conditions[first.line], findings.conditions[first.other]

    assert findings.baseline == "sft"
    assert len(found) == 2 * (1 + 4), "Vaccine, and Booster with four settings, at two ratios"
    assert (line.names["ratio"], other.names["defense"]) == (other.names["ratio"], "sft")
    assert first.difference == pytest.approx(findings.means["hs"][first.line] - findings.means["hs"][first.other])
    assert first.seeds == 3
    assert first.p <= first.p_holm


def test_comparison_with_a_defense_that_is_not_there_is_the_users_mistake(drawn):
    with pytest.raises(
        ConfigError, match=r"`--baseline`: no cell has the defense `lisa`; expected one of sft, vaccine"
    ):
        report(drawn.store.root, None, "table", baseline="lisa")


def test_comparison_without_plain_training_has_no_baseline(maker):
    maker.sweep([maker.cell("vaccine", 0.1, seed, {}) for seed in range(2)])

    findings = load_results(maker.store, maker.store.read_sweep("drawn-1"))

    assert findings.baseline is None
    assert findings.comparisons == ()


def test_best_is_bold_only_if_the_paired_test_says_so(maker):
    clear = [maker.cell(defense, 0.3, seed, {}) for defense in ("sft", "booster") for seed in range(5)]
    maker.sweep(clear)
    same = copy.deepcopy(clear)
    for cell in same[5:]:
        cell["keys"] |= {part: same[cell["labels"]["seed"]]["keys"][part] for part in ("harm", "accuracy")}

    separate = report(maker.store.root, None, "md")
    maker.sweep(same)
    equal = report(maker.store.root, None, "md")

    assert "**" not in equal
    assert separate.count("**") in (2, 4)
    assert next(line for line in separate.splitlines() if "**" in line).startswith("| booster")


def test_board_has_scores_across_and_an_average(findings, drawn):
    (board,) = findings.paper_tables
    row = board.rows[0]
    markdown, latex = (report(drawn.store.root, None, format) for format in ("md", "latex"))

    assert list(board.columns) == ["aligned", "0", "0.2", "average"]
    assert [row.name for row in board.rows][:3] == ["sft", "vaccine", "booster (lamb 1, alpha 0.1)"]
    assert row.cells["hs", "average"].mean == pytest.approx(
        (row.cells["hs", "0"].mean + row.cells["hs", "0.2"].mean) / 2
    )
    assert "| HS aligned |" in " ".join(markdown.split())
    assert r"\multicolumn{4}{c}{HS} & \multicolumn{4}{c}{FA} \\" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 1


def test_latex_has_intervals_below_the_means_and_tells_its_notes(drawn):
    latex = report(drawn.store.root, None, "latex")
    lines = latex.splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith("sft & "))

    assert all(cell.strip(" \\")[0].isdigit() for cell in lines[first].split("&")[1:])
    assert lines[first + 1].count(r"{\scriptsize [") == lines[first].count("&")
    assert latex.index(r"\end{tabular}") < latex.index("p $<$ 0.05") < latex.index(r"\end{table*}")
    assert r"95\% interval" in latex
    assert not any(line.startswith("% p is") for line in lines)


def test_different_budgets_and_world_sizes_are_footnotes_and_strict_refuses(maker):
    cells = [maker.cell(defense, 0.1, seed, {}) for defense in ("sft", "vaccine") for seed in range(2)]
    maker.sweep(cells)
    tuned = cells[-1]["keys"]["finetune"]
    spec = maker.store.root / "specs" / f"{tuned}.json"
    spec.write_text(json.dumps(json.loads(spec.read_text()) | {"budget": {"epochs": 5, "micro_batch_size": 2}}))
    path = maker.store.root / "artifacts" / "finetune" / tuned / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["provenance"]["processes"] = 4
    manifest["facts"]["shrunk"] = True
    path.write_text(json.dumps(manifest))

    text = report(maker.store.root, None, "table")

    assert "finetune.budget.epochs is 5, not 20" in text
    assert "finetune.processes is 4, not 1" in text
    assert "micro_batch_size" not in text
    assert "seed=1: out of memory in finetune: rerun with smaller micro-batches" in text
    with pytest.raises(ConfigError, match=r"`--strict`: 1 cells \(vaccine\) are not comparable .*epochs is 5, not 20"):
        report(maker.store.root, None, "table", strict=True)


def decoded(maker, cell, **facts):
    """Let the manifest of a cell's answers say how they were decoded."""
    path = maker.store.root / "artifacts" / "generate" / cell["keys"]["harm_answers"] / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["facts"]["decoding"] = facts
    path.write_text(json.dumps(manifest))


def test_answers_that_were_decoded_otherwise_are_footnotes_and_strict_refuses(maker):
    cells = [maker.cell(defense, 0.1, seed, {}) for defense in ("sft", "vaccine") for seed in range(2)]
    maker.sweep(cells)
    for cell in cells[:3]:
        decoded(maker, cell, path="slots", why="", arithmetic="bfloat16", batch=256)
    decoded(maker, cells[3], path="plain", why="the device is cpu", arithmetic="bfloat16", batch=64)

    text = report(maker.store.root, None, "table")

    assert "decoding.path is plain, not slots" in text
    assert "decoding.arithmetic" not in text
    assert "batch" not in text
    with pytest.raises(
        ConfigError, match=r"1 cells \(vaccine\) are not comparable .*decoding.path is plain, not slots"
    ):
        report(maker.store.root, None, "table", strict=True)


def test_training_with_other_numeric_switches_is_a_footnote_and_strict_refuses(maker):
    cells = [maker.cell(defense, 0.1, seed, {}) for defense in ("sft", "vaccine") for seed in range(2)]
    maker.sweep(cells)
    path = maker.store.root / "artifacts" / "finetune" / cells[-1]["keys"]["finetune"] / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["facts"]["passes"] = {"compiled": "inductor", "tf32": False, "lengths": [8], "not_compiled": ""}
    path.write_text(json.dumps(manifest))

    text = report(maker.store.root, None, "table")

    assert "finetune.passes is compiled inductor, tf32 False, not plain" in text
    with pytest.raises(ConfigError, match=r"1 cells \(vaccine\) are not comparable .*compiled inductor"):
        report(maker.store.root, None, "table", strict=True)


@pytest.mark.parametrize(("fused", "told"), [(False, False), (True, True)])
def test_switch_that_earlier_versions_did_not_have_is_told_if_it_is_on(maker, fused, told):
    cells = [maker.cell(defense, 0.1, 0, {}) for defense in ("sft", "vaccine")]
    maker.sweep(cells)
    for cell, later in zip(cells, ({}, {"fused": fused}), strict=True):
        path = maker.store.root / "artifacts" / "finetune" / cell["keys"]["finetune"] / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["facts"]["passes"] = {"compiled": "inductor", **later}
        path.write_text(json.dumps(manifest))

    assert ("fused True" in report(maker.store.root, None, "table")) == told
    assert ("another protocol" in report(maker.store.root, None, "table")) == told


def test_answers_stored_before_paths_were_recorded_took_the_plain_one(maker):
    cells = [maker.cell(defense, 0.1, seed, {}) for defense in ("sft", "vaccine") for seed in range(2)]
    maker.sweep(cells)
    for cell in cells[:2]:
        decoded(maker, cell, path="plain", arithmetic="float32")

    assert "another protocol" not in report(maker.store.root, None, "table", strict=True)

    for cell in cells[:2]:
        decoded(maker, cell, path="slots", arithmetic="float32")
    with pytest.raises(ConfigError, match=r"decoding.path is (plain, not slots|slots, not plain)"):
        report(maker.store.root, None, "table", strict=True)


def test_unfinished_answers_depart_from_nothing(maker):
    cells = [maker.cell(defense, 0.1, seed, {}) for defense in ("sft", "vaccine") for seed in range(2)]
    maker.sweep(cells)
    for cell in cells[:3]:
        decoded(maker, cell, path="slots", arithmetic="bfloat16")
    folder = maker.store.root / "artifacts" / "generate" / cells[3]["keys"]["harm_answers"]
    (folder / "manifest.json").unlink()

    assert "another protocol" not in report(maker.store.root, None, "table", strict=True)


def test_settings_that_are_swept_are_columns_and_no_footnotes(maker):
    cells = [maker.cell("sft", 0.1, seed, {"finetune.budget.epochs": epochs}) for seed in (0, 1) for epochs in (5, 20)]
    for cell in cells:
        spec = maker.store.root / "specs" / f"{cell['keys']['finetune']}.json"
        spec.write_text(json.dumps({"budget": {"epochs": cell["swept"]["finetune.budget.epochs"]}}))
    maker.sweep(cells)

    assert "another protocol" not in report(maker.store.root, None, "table", strict=True)


def test_cost_counts_shared_stages_once_and_tells_what_sharing_saved(maker):
    cells = [maker.cell(defense, ratio, 0, {}) for defense in ("sft", "vaccine") for ratio in (0.0, 0.1)]
    record = maker.sweep(cells, predicted={"align": 300.0, "finetune": None})

    findings = load_results(maker.store, record)
    kinds = {kind.kind: kind for kind in cost.kinds(findings)}

    align = kinds["align"]
    assert (align.distinct, align.unshared, align.finished, align.device) == (2, 4, 2, "cuda")
    assert (align.hours, align.saved, align.predicted) == pytest.approx(
        (2 * 600 / 3600, 2 * 600 / 3600, 2 * 300 / 3600)
    )
    assert kinds["finetune"].predicted is None
    assert [(each.defense, each.ratio) for each in cost.overheads(findings)] == [("sft", 1.0), ("vaccine", 1.0)]
    assert findings.rows["predicted_seconds"].isna().all(), "one kind of a cell's stages has no prediction"


def test_robust_region_holds_the_best_setting_and_its_equals(findings):
    (region,) = robust_regions(findings)
    booster = findings.means[findings.means["defense"] == "booster"]
    loss = (
        (booster["hs"] - booster["fa"]).groupby([booster["defense.align.lamb"], booster["defense.align.alpha"]]).mean()
    )

    assert (region.defense, region.settings) == ("booster", 4)
    assert region.inside == (loss <= loss.min() + 4).sum()
    assert region.best == "lamb {:g}, alpha {:g}".format(*loss.idxmin())
