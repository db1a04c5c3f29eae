"""What a defense costs beside the baseline."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from fabricated import Fabricator

from harness.report.stats.cost import Overhead, kinds, overheads
from harness.report.stats.results import load_results


@pytest.fixture
def maker(tmp_path: Path) -> Fabricator:
    (tmp_path / "store" / "attempts").mkdir(parents=True)
    return Fabricator(tmp_path / "store", prompts=20, answers=20, categories=False)


def _told(maker: Fabricator, cells: list[dict[str, Any]]) -> dict[str, Overhead]:
    return {each.defense: each for each in overheads(load_results(maker.store, maker.sweep(cells)))}


def _remove(maker: Fabricator, cell: dict[str, Any], kind: str) -> None:
    shutil.rmtree(maker.store.root / "artifacts" / kind / cell["keys"][kind])


def test_overhead_is_given_when_all_kinds_of_both_are_known(maker):
    told = _told(maker, [maker.cell(defense, 0.1, 0, {}) for defense in ("sft", "booster")])

    assert told["booster"].seconds == {"align": 600.0, "finetune": 600.0}
    assert told["booster"].ratio == 1.0


@pytest.mark.parametrize("unfinished", [0, 1])
def test_overhead_without_a_kind_of_either_has_no_ratio(maker, unfinished):
    cells = [maker.cell(defense, 0.1, 0, {}) for defense in ("sft", "booster")]
    _remove(maker, cells[unfinished], "finetune")

    told = _told(maker, cells)

    assert told["booster"].ratio is None


def test_overhead_is_over_the_tasks_that_both_have(maker):
    cells = [maker.cell(defense, 0.1, 0, {}) for defense in ("sft", "booster")]
    other = maker.cell("booster", 0.3, 1, {})
    other["labels"]["task"] = "long"
    for _ in range(3):
        maker.store.record_attempt(other["keys"]["finetune"], {"outcome": "stopped", "seconds": 600.0})

    told = _told(maker, [*cells, other])

    assert told["booster"].ratio == 1.0
    assert told["booster"].total > told["sft"].total


def test_stages_that_are_no_parts_of_cells_count_with_the_stage_that_is_made_of_them(maker):
    cells = [maker.cell(defense, 0.1, 0, {}) for defense in ("sft", "booster")]
    tuned, aligned = cells[1]["keys"]["finetune"], cells[1]["keys"]["align"]
    rounds = [maker._trained("client", f"round-{number}", {}) for number in range(2)]
    parents = {tuned: [aligned, rounds[1]], rounds[1]: [aligned, rounds[0]], rounds[0]: [aligned]}
    traits = {"kind": "client", "trains": True, "parallel": True, "attacked": True, "settings": {}}
    stages = {key: {**traits, "parents": parents[key]} for key in rounds}
    stages[tuned] = {**traits, "kind": "finetune", "parents": parents[tuned]}

    results = load_results(maker.store, maker.sweep(cells, stages=stages))
    (client,) = (cost for cost in kinds(results) if cost.kind == "client")
    told = {each.defense: each for each in overheads(results)}

    assert (client.distinct, client.finished, client.unshared) == (2, 2, 2)
    assert told["booster"].seconds == {"align": 600.0, "finetune": 1800.0}
    assert told["booster"].ratio == 2.0
    assert told["sft"].seconds == {"align": 600.0, "finetune": 600.0}


def test_ensemble_costs_what_all_of_its_members_do_and_what_they_share_once(maker):
    plain, other = (maker.cell(defense, 0.1, 0, {}) for defense in ("sft", "booster"))
    keys = {
        "sft.align": plain["keys"]["align"], "sft.finetune": plain["keys"]["finetune"],
        "lisa.align": plain["keys"]["align"], "lisa.finetune": other["keys"]["finetune"],
        "harm": plain["keys"]["harm"], "accuracy": plain["keys"]["accuracy"],
    }  # fmt: skip
    ensemble = {**plain, "labels": {**plain["labels"], "defense": "topla(sft+lisa)"}, "keys": keys}

    told = _told(maker, [plain, other, ensemble])

    assert told["topla(sft+lisa)"].seconds == {"align": 600.0, "finetune": 1200.0}
    assert told["topla(sft+lisa)"].ratio == 1.5


def test_cost_counts_attempts_that_did_not_finish(maker):
    cell = maker.cell("sft", 0.1, 0, {})
    for outcome, seconds in (("stopped", 100.0), ("failed", 50.0), ("executed", 600.0)):
        maker.store.record_attempt(cell["keys"]["finetune"], {"outcome": outcome, "seconds": seconds})

    findings = load_results(maker.store, maker.sweep([cell]))

    (tuned,) = [found for found in kinds(findings) if found.kind == "finetune"]
    assert tuned.hours * 3600 == pytest.approx(750.0)


def test_cost_damaged_record_of_attempts_hides_no_report(maker):
    cell = maker.cell("sft", 0.1, 0, {})
    maker.store.record_attempt(cell["keys"]["finetune"], {"outcome": "stopped", "seconds": 1.0})
    (maker.store.root / "attempts" / f"{cell['keys']['finetune']}.jsonl").write_text("{\n")

    assert _told(maker, [cell])["sft"].seconds["finetune"] == 600.0
