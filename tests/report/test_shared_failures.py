"""The matrix of shared failures: values by hand, and what is left out of the figure."""

from math import isnan

import numpy as np
import pytest
from fabricated import Fabricator

from harness.report.data.conditions import Condition
from harness.report.data.scores import Graded
from harness.report.figures.diversity import diversity_views
from harness.report.stats.results import load_results
from harness.report.stats.shared_failures import shared_failures


def pairs_of(*defenses):
    """Pairs of conditions that are given as verdicts by seed."""
    grades, conditions = {}, []
    for name, by_seed in enumerate(defenses):
        cells = []
        for seed, values in by_seed.items():
            key = f"{name}-{seed}"
            grades[key] = Graded(summary={"score": 0.0}, values=np.array(values, dtype=float))
            cells.append({"seed": seed, "hs": 0.0, "key.harm": key})
        conditions.append(Condition({"defense": str(name)}, cells))
    return shared_failures(conditions, grades)


def test_values_are_those_computed_by_hand():
    """A fails on rows 1 to 3, B on rows 2 and 3, of four: 1 - 4/5 and 1 - 4/4, mean 0.1.

    Independent, they would both fail on 3 * 2 / 4 = 1.5 rows: 1 - 3/4.5 and 1 - 3/3.5, mean 0.2381.
    """
    pair = pairs_of({0: [1, 1, 1, 0]}, {0: [0, 1, 1, 0]})[0, 1]

    assert pair.diversity == pytest.approx(0.1)
    assert pair.independent == pytest.approx((1 / 3 + 1 / 7) / 2)
    assert pair.both == 2


def test_seeds_are_pooled_and_only_common_ones_count():
    first = {0: [1, 0, 0, 0], 1: [1, 1, 0, 0], 2: [1, 1, 1, 1]}
    pair = pairs_of(first, {0: [0, 1, 0, 0], 1: [1, 0, 0, 0]})[0, 1]

    # Failures of seeds 0 and 1: 3 and 2, one of them in common. By chance 1/4 + 2/4.
    assert pair.both == 1
    assert pair.diversity == pytest.approx((2 - 2 / 4 - 2 / 3) / 2)
    assert pair.independent == pytest.approx((2 - 1.5 / 3.75 - 1.5 / 2.75) / 2)


def test_prompt_that_one_of_them_was_not_judged_on_does_not_count():
    nan = float("nan")

    assert pairs_of({0: [1, 1, nan]}, {0: [1, nan, 1]})[0, 1] == (0.0, 0.0, 1)


def test_without_failures_it_is_undefined_and_without_a_common_seed_there_is_no_pair():
    assert isnan(pairs_of({0: [0, 0]}, {0: [0, 0]})[0, 1].diversity)
    assert pairs_of({0: [1, 0]}, {1: [1, 0]}) == {}


def test_figure_has_the_measured_values_below_the_diagonal_and_independent_ones_above(tmp_path):
    maker = Fabricator(tmp_path / "store", prompts=60, answers=20, categories=False)
    cells = [maker.cell(defense, 0.2, seed, {}) for defense in ("sft", "vaccine", "booster") for seed in (0, 1)]
    results = load_results(maker.store, maker.sweep(cells))

    (view,) = diversity_views(results)

    assert view.x == view.y == ["sft", "vaccine", "booster"]
    pairs = shared_failures(results.conditions, results.grades)
    assert view.values[0][1] == pytest.approx(100 * pairs[0, 1].diversity)
    assert view.values[1][0] == pytest.approx(100 * pairs[0, 1].independent)
    assert all(isnan(view.values[index][index]) for index in range(3))
    # Fabricated prompts differ in difficulty, so defenses fail together more often than by chance.
    assert all(view.values[low][high] < view.values[high][low] for low, high in pairs)
    assert "p=0.2" in view.title


def test_single_defense_and_harmless_ones_have_no_figure(tmp_path):
    maker = Fabricator(tmp_path / "store", prompts=20, answers=20, categories=False)

    assert diversity_views(load_results(maker.store, maker.sweep([maker.cell("sft", 0.2, 0, {})]))) == []
