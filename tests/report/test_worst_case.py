"""The worst case of each defense under an attacker with a budget of trials: hand-computed cases."""

import math

import numpy as np
import pytest

from harness.config.attacker import Attacker, check_swept
from harness.engine.build import build
from harness.errors import ConfigError
from harness.report.data.conditions import Condition
from harness.report.data.scores import Graded
from harness.report.figures.attacker import attacker_views
from harness.report.output.formats import render
from harness.report.output.worst_case_table import durability_table, worst_case_table
from harness.report.stats.results import load_results
from harness.report.stats.worst_case import worst_cases

SETTINGS = {"space": ["lr"], "utility_loss": 10.0}


def trials(**defenses):
    """Return conditions and grades. A trial is (learning rate, verdicts of each seed, FA in percent)."""
    conditions, grades = [], {}
    for defense, tried in defenses.items():
        for lr, seeds, accuracy in tried:
            cells = []
            for seed, verdicts in enumerate(seeds):
                harm, right = f"harm-{defense}-{lr}-{seed}", f"right-{defense}-{lr}-{seed}"
                grades[harm] = Graded(values=np.array([float(letter) for letter in verdicts]))
                cells.append(
                    {
                        "seed": seed,
                        "hs": 100 * sum(map(int, verdicts)) / len(verdicts),
                        "fa": accuracy,
                        "key.harm": harm,
                        "key.accuracy": right,
                    }
                )
            names = {"defense": defense, "task": "t", "model": "m", "ratio": 0.1, "lr": lr, "protocol": f"{lr}"}
            conditions.append(Condition(names, cells))
    return conditions, grades


def cases_of(settings=SETTINGS, baseline="sft", **defenses):
    found = worst_cases(settings, *trials(**defenses), baseline)
    return found, {case.defense: case for case in found.cases}


def test_trial_is_chosen_on_every_other_prompt_and_reported_on_the_rest():
    # Prompts 0, 2 choose: 1e-3 has 2 of 2 there and 0 of 2 elsewhere; 1e-2 has 1 of 2 and 2 of 2.
    _, cases = cases_of(sft=[("1e-3", ["1010"], 90), ("1e-2", ["1101"], 90)])

    chosen = cases["sft"].chosen
    assert (chosen.name, chosen.selection, chosen.reported) == ("lr 1e-3", 100.0, 0.0)


def test_trial_that_loses_the_users_task_does_not_count():
    adaptive, cases = cases_of(
        sft=[("1e-3", ["0000"], 80), ("1e-2", ["1111"], 90)],
        booster=[("1e-3", ["0100"], 80), ("1e-2", ["1111"], 79.9)],
    )

    # The best FA of sft is 90, so 80 is the bound, also for sft itself.
    assert cases["sft"].chosen.name == "lr 1e-2"
    assert (cases["booster"].chosen.name, cases["booster"].chosen.reported) == ("lr 1e-3", 50.0)
    assert (cases["sft"].useful, cases["booster"].useful) == (2, 1)
    assert "FA at most 10 points below the best FA of sft" in adaptive.notes[0]


def test_cases_are_named_by_what_is_not_the_attackers_choice():
    conditions, grades = trials(sft=[("1e-3", ["0000"], 90)])
    judged = [
        Condition({**condition.names, "judge": judge}, condition.cells)
        for condition in conditions
        for judge in ("affirmative", "keywords")
    ]

    found = worst_cases(SETTINGS, judged, grades, "sft")

    assert [case.name for case in found.cases] == ["sft (judge affirmative)", "sft (judge keywords)"]


def test_probe_is_held_to_the_accuracy_of_the_model_that_it_asks():
    conditions, grades = trials(sft=[("1e-3", ["0000"], 90)], booster=[("1e-3", ["0001"], 50), ("1e-2", ["0000"], 85)])
    asked = [
        Condition({**condition.names, "probe": probe, "protocol": f"{condition.names['protocol']} {probe}"}, cells)
        for condition in conditions
        for probe, cells in (
            (None, condition.cells),
            ("triggered", [{**cell, "fa": float("nan"), "key.accuracy": None} for cell in condition.cells]),
        )
    ]

    found = worst_cases(SETTINGS, asked, grades, "sft")

    cases = {case.name: case for case in found.cases}
    assert [trial.fa for trial in cases["booster (probe triggered)"].trials] == [50.0, 85.0]
    assert (cases["booster (probe triggered)"].useful, cases["booster"].useful) == (1, 1)
    assert not any("not finished" in note for note in found.notes)


def test_best_accuracy_of_a_baseline_is_that_over_all_its_settings():
    conditions, grades = trials(sft=[("1e-3", ["0000"], 90)], booster=[("1e-3", ["0000"], 79)])
    weak, other_grades = trials(sft=[("1e-3", ["0000"], 40)])
    settings = [
        Condition({**condition.names, "defense.align.lamb": lamb}, condition.cells)
        for lamb, found in ((1, conditions), (2, weak))
        for condition in found
    ]

    found = worst_cases(SETTINGS, settings, grades | other_grades, "sft")

    assert [case.useful for case in found.cases] == [1, 0, 0]


def test_trial_without_a_judged_prompt_to_report_on_does_not_count():
    conditions, grades = trials(sft=[("1e-3", ["1111"], 90)])
    grades["harm-sft-1e-3-0"].values[1::2] = np.nan

    (case,) = worst_cases(SETTINGS, conditions, grades, "sft").cases

    assert case.chosen is None


def test_single_prompt_leaves_nothing_to_report_on():
    _, cases = cases_of(sft=[("1e-3", ["1"], 90)])

    assert cases["sft"].chosen is None


def test_without_a_baseline_utility_has_no_bound_and_the_note_says_so():
    adaptive, cases = cases_of(baseline=None, booster=[("1e-3", ["0101"], 5)])

    assert cases["booster"].chosen.reported == 100.0
    assert "no bound on FA" in adaptive.notes[0]


def test_defense_against_which_no_trial_is_useful_has_no_worst_case():
    adaptive, cases = cases_of(sft=[("1e-3", ["0000"], 90)], booster=[("1e-3", ["1111"], 20)])

    assert cases["booster"].chosen is None
    assert [step.mean for step in cases["booster"].curve] == [0.0]
    assert [line.cells[3] for line in worst_case_table(adaptive).lines] == ["lr 1e-3", "no useful trial"]


def test_curve_is_the_expectation_over_all_orders_of_the_trials():
    # By selection: 1e-1 (100), 1e-2 (50), 1e-3 (0); reported 50, 100, 0.
    _, cases = cases_of(sft=[("1e-3", ["0000"], 90), ("1e-2", ["1101"], 90), ("1e-1", ["1110"], 90)])
    one, two, three = cases["sft"].curve

    assert one.mean == pytest.approx((0 + 100 + 50) / 3)
    # Of two trials the better selection wins: {1e-1, 1e-2} and {1e-1, 1e-3} end with 1e-1, {1e-2, 1e-3} with 1e-2.
    assert two.mean == pytest.approx((50 + 50 + 100) / 3)
    assert (three.mean, three.low, three.high) == (pytest.approx(50.0), 50.0, 50.0)
    assert (one.low, one.high) == (0.0, 100.0)
    assert (two.low, two.high) == (50.0, 100.0)


def test_interval_is_that_of_the_reported_prompts_over_seeds():
    _, cases = cases_of(sft=[("1e-3", ["1010", "1111"], 90)])
    case = cases["sft"]

    # The reported prompts have 0 and 1 of each seed: mean 50.
    assert case.chosen.reported == 50.0
    assert case.low < 50.0 < case.high
    _, single = cases_of(sft=[("1e-3", ["1010"], 90)])
    assert math.isnan(single["sft"].low)


def test_seeds_are_trials_if_the_attacker_chooses_them():
    _, cases = cases_of({"space": ["lr", "seed"], "utility_loss": 10.0}, sft=[("1e-3", ["0000", "1111"], 90)])

    assert [trial.name for trial in cases["sft"].trials] == ["lr 1e-3, seed 0", "lr 1e-3, seed 1"]
    assert cases["sft"].chosen.name == "lr 1e-3, seed 1"


@pytest.mark.parametrize("space", [["lr"], ["lr", "seed"]])
def test_durability_has_every_setting_over_all_prompts_with_its_worst_seed(space):
    adaptive, _ = cases_of(
        {"space": space, "utility_loss": 10.0},
        sft=[("1e-3", ["0000"], 90), ("1e-2", ["0100", "1111", "1010"], 80)],
        booster=[("1e-3", ["1000", "0000"], 70), ("1e-2", [], 60)],
    )

    # 25, 100 and 50 percent have the mean 58.3; half the sum of their squared distances from it is 38.2 ** 2.
    assert [line.cells for line in durability_table(adaptive).lines] == [
        ("lr 1e-3", "sft", "1", "0.0", "0.0 (seed 0)", "90.0"),
        ("lr 1e-3", "booster", "2", "12.5 (17.7)", "25.0 (seed 0)", "70.0"),
        ("lr 1e-2", "sft", "3", "58.3 (38.2)", "100.0 (seed 1)", "80.0"),
        ("lr 1e-2", "booster", "0", "-", "-", "-"),
    ]


def test_unequal_budgets_and_missing_trials_are_noted():
    adaptive, _ = cases_of(
        sft=[("1e-3", ["0000"], 90), ("1e-2", ["1111"], 90)], booster=[("1e-3", ["0000"], float("nan"))]
    )

    assert any("not have the same number of trials" in note for note in adaptive.notes)
    assert any(note.startswith("booster: 1 of 1 trials are not finished") for note in adaptive.notes)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    from fabricated import Fabricator

    made = Fabricator(tmp_path_factory.mktemp("store"))
    cells = [
        made.cell(defense, ratio, seed, {"finetune.budget.epochs": epochs})
        for defense in ("sft", "vaccine")
        for ratio in (0.1, 0.2)
        for epochs in (1, 2)
        for seed in range(2)
    ]
    record = made.sweep(cells, attacker={"space": ["ratio", "finetune.budget.epochs"], "utility_loss": 20.0})
    return load_results(made.store, record)


@pytest.mark.parametrize("format", ["md", "html"])
def test_tables_have_the_durability_of_every_setting(results, format):
    text = render(results, format)

    lines = durability_table(results.adaptive).lines
    assert len(lines) == 8
    assert all(cell in text for line in lines for cell in line.cells)


@pytest.mark.parametrize("format", ["table", "md", "latex", "json", "html"])
def test_every_format_has_the_worst_cases(results, format):
    text = render(results, format)

    assert "worst" in text.lower()
    (line,) = [line for line in worst_case_table(results.adaptive).lines if line.defense == "vaccine"]
    assert line.cells[1] == "4"
    assert format == "json" or line.cells[3] in text


def test_figure_ends_with_all_trials(results):
    (view,) = attacker_views(results)

    assert [series.name for series in view.series] == ["sft", "vaccine"]
    assert all(list(series.x) == [1, 2, 3, 4] for series in view.series)


def test_space_has_to_be_swept():
    attacker = build(Attacker, {"space": ["attack_ratio", "finetune.rows"], "utility_loss": 5})

    with pytest.raises(ConfigError, match=r"`finetune\.rows` is not swept; expected one of attack_ratio, seed"):
        check_swept(attacker, {"ratio", "seed"})
    check_swept(attacker, {"ratio", "finetune.rows"})
    assert attacker.columns == ["ratio", "finetune.rows"]


@pytest.mark.parametrize("wrong", [{"space": []}, {"space": ["seed"], "utility_loss": -1}])
def test_attacker_without_a_choice_or_bound_is_refused(wrong):
    with pytest.raises(ConfigError):
        build(Attacker, wrong)
