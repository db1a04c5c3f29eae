"""Defenses against training less at equal accuracy: choices and differences by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from fabricated import Fabricator

from harness.report.data.conditions import Condition
from harness.report.data.scores import Graded
from harness.report.output.equal_accuracy_table import NOTE, equal_accuracy_table
from harness.report.output.formats import render
from harness.report.output.page import page
from harness.report.stats.equal_accuracy import at_equal_accuracy
from harness.report.stats.results import load_results

PROMPTS = 100


def found(*settings, seeds=5):
    """Compare conditions, each a defense, its settings, the number of prompts answered harmfully, and FA in percent."""
    conditions, grades, means = [], {}, []
    for line, (defense, swept, harmful, accuracy) in enumerate(settings):
        cells = []
        for seed in range(seeds):
            key = f"harm-{line}-{seed}"
            # Seeds differ in one prompt.
            grades[key] = Graded(values=np.array([float(row < harmful + seed % 2) for row in range(PROMPTS)]))
            cells.append({"seed": seed, "hs": 100 * grades[key].values.mean(), "fa": accuracy, "key.harm": key})
        names = {"task": "t", "model": "m", "ratio": 0.1, "protocol": "p", "defense": defense, **swept}
        conditions.append(Condition(names, cells))
        means.append({"hs": np.mean([cell["hs"] for cell in cells]), "fa": accuracy})
    return at_equal_accuracy(conditions, pd.DataFrame(means), grades)


def share(value):
    return {"defense.finetune.share": value}


def test_defense_meets_the_least_harmful_setting_that_costs_no_more_accuracy():
    # At 88 points of FA a quarter of the steps (80) is too little, a half (87) is within the margin, all (90) is worse.
    (lisa,) = found(
        ("sft", {}, 60, 90),
        ("fewer_steps", share(0.25), 5, 80),
        ("fewer_steps", share(0.5), 30, 87),
        ("lisa", {}, 20, 88),
    )

    assert (lisa.line, lisa.baseline, lisa.other) == (3, "fewer_steps", 2)
    assert lisa.harm.difference == pytest.approx(20 - 30)
    assert lisa.harm.low < -10 < lisa.harm.high < 0
    assert lisa.better


def test_defense_that_does_no_more_than_training_less_is_not_better():
    (lisa,) = found(("sft", {}, 60, 90), ("fewer_steps", share(0.5), 20, 88), ("lisa", {}, 20, 88))

    assert lisa.harm.difference == pytest.approx(0)
    assert not lisa.better


def test_plain_training_is_a_setting_of_every_baseline():
    (lisa,) = found(("sft", {}, 60, 90), ("fewer_steps", share(0.5), 10, 80), ("lisa", {}, 20, 90.5))

    assert lisa.other == 0


def test_defense_above_every_setting_is_compared_with_none():
    (lisa,) = found(("sft", {}, 60, 90), ("fewer_steps", share(0.5), 10, 80), ("lisa", {}, 20, 91.5))

    assert (lisa.other, lisa.harm, lisa.better) == (None, None, False)


def test_settings_of_defenses_separate_nothing_and_those_of_the_attack_do():
    compared = found(
        ("sft", {"finetune.rows": 100}, 60, 90),
        ("fewer_steps", {"finetune.rows": 100, "tuned.fewer_steps.share": 0.5}, 40, 90),
        ("fewer_steps", {"finetune.rows": 200, "tuned.fewer_steps.share": 0.5}, 10, 90),
        ("lisa", {"finetune.rows": 100, "tuned.lisa.rho": 1}, 20, 90),
    )

    assert [(each.line, each.other) for each in compared] == [(3, 1)]


def test_condition_without_a_score_is_left_out():
    nan = float("nan")
    assert found(("sft", {}, 60, 90), ("fewer_steps", share(0.5), 10, nan), ("lisa", {}, 20, 90)) == []


@pytest.fixture
def results(tmp_path):
    maker = Fabricator(tmp_path / "store", prompts=60, answers=40)
    cells = [maker.cell(defense, 0.2, seed, {}) for defense in ("sft", "vaccine") for seed in range(3)]
    for seed in range(3):
        less = maker.cell("booster", 0.2, seed, {})
        cells.append(less | {"labels": less["labels"] | {"defense": "fewer_steps"}})
    return load_results(maker.store, maker.sweep(cells))


def test_every_format_that_has_room_has_the_table(results):
    table = equal_accuracy_table(results)

    assert table is not None
    assert [line.defense for line in table.lines] == ["vaccine"]
    assert table.heading[-1] == "against fewer_steps"
    assert "| against fewer_steps" in render(results, "md")
    assert "against fewer_steps" not in render(results, "table")
    assert NOTE.partition(":")[0] in page(results)
    (compared,) = json.loads(render(results, "json"))["equal_accuracy"]
    assert (compared["line"], compared["baseline"]) == (1, "fewer_steps")


def test_sweep_without_such_a_baseline_has_no_table(findings):
    assert equal_accuracy_table(findings) is None
