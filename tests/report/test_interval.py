from itertools import pairwise

import numpy as np
import pytest
from scipy import special, stats

from harness.report.stats.interval import Estimate, estimates, holm, more_seeds


def _sweeps(count: int, *, seeds: tuple[int, ...], prompts: int, spread: tuple[float, float]) -> tuple[list, list]:
    """Simulated verdicts and true scores: prompts of random difficulty, seeds of random luck, unseen base rates."""
    chance = np.random.default_rng(20261122)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    panels, truths = [], []
    for _ in range(count):
        size = chance.choice(seeds)
        luck, difficulty = chance.uniform(*spread), chance.uniform(1.0, 2.0)
        base = special.logit(chance.uniform(0.05, 0.9)) * 1.4
        logits = base + luck * chance.standard_normal((size, 1)) + difficulty * chance.standard_normal((1, prompts))
        panels.append((chance.random((size, prompts)) < special.expit(logits)).astype(float))
        truths.append((special.expit(base + np.hypot(luck, difficulty) * nodes) * weights).sum() / weights.sum())
    return panels, truths


@pytest.mark.parametrize(
    ("seeds", "prompts", "spread"), [((3, 4, 5), 200, (0.2, 1.0)), ((3,), 200, (0.3, 1.0)), ((5,), 1000, (0.1, 0.8))]
)
def test_interval_covers_the_true_score_in_95_of_100_sweeps(seeds, prompts, spread):
    panels, truths = _sweeps(1000, seeds=seeds, prompts=prompts, spread=spread)

    covered = [low <= truth <= high for (_, low, high, *_), truth in zip(estimates(panels), truths, strict=True)]

    assert 0.93 <= np.mean(covered) <= 0.97


def test_difference_of_equal_defenses_is_found_significant_in_5_of_100_sweeps():
    chance = np.random.default_rng(7)
    panels = []
    for _ in range(1000):
        difficulty = 1.5 * chance.standard_normal((1, 200))
        first, second = (special.expit(0.6 * chance.standard_normal((3, 1)) + difficulty) for _ in range(2))
        panels.append((chance.random((3, 200)) < first) * 1.0 - (chance.random((3, 200)) < second))

    found = estimates(panels, difference=True)

    assert 0.03 <= np.mean([estimate.p < 0.05 for estimate in found]) <= 0.07
    assert all((e.p < 0.05) == (not e.low <= 0 <= e.high) for e in found if abs(e.p - 0.05) > 0.002)


def test_interval_of_scores_without_prompts_is_students():
    (found,) = estimates([np.array([[0.4], [0.5], [0.6]])], difference=True)

    half = stats.t.ppf(0.975, 2) * 0.1 / 3**0.5
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), rel=0.02)


def test_interval_widens_where_prompts_differ_though_seeds_agree():
    same = np.tile(np.repeat([0.0, 1.0], 50), (3, 1))

    (found,) = estimates([same])

    half = 1.96 * 0.5 / 100**0.5
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.02)
    assert found.seed_variance == 0


def test_interval_of_nothing_seen_is_what_may_be_unseen():
    (none, every) = estimates([np.zeros((3, 200)), np.ones((3, 200))])

    assert (none.low, none.high) == pytest.approx((0.0, stats.binomtest(0, 200).proportion_ci(0.95).high))
    assert (every.low, every.high) == pytest.approx((1 - none.high, 1.0))


def test_interval_of_one_seed_is_unknown():
    (found,) = estimates([np.array([[0.0, 1.0]])])

    assert found.mean == 0.5
    assert np.isnan([found.low, found.high, found.p]).all()


def test_interval_ignores_what_could_not_be_judged():
    panel = np.array([[1.0, 0.0, np.nan, 0.0], [1.0, 0.0, 1.0, 0.0], [1.0, np.nan, 1.0, 0.0]])

    (found,) = estimates([panel])

    assert found.mean == pytest.approx((1 / 3 + 1 / 2 + 2 / 3) / 3)
    assert 0 < found.low < found.mean < found.high < 1


def test_prompts_that_were_judged_for_no_seed_count_as_none():
    judged = np.tile([1.0, 0.0, 0.0, 1.0, 0.0], (3, 10))
    judged[0, 0] = 0.0
    gaps = np.full((3, 150), np.nan)

    (few, more) = estimates([judged, np.hstack([judged, gaps])])
    (none, fewer) = estimates([np.hstack([np.zeros((3, 50)), gaps]), np.zeros((3, 50))])

    assert more.mean == few.mean
    assert (more.low, more.high) == pytest.approx((few.low, few.high), abs=0.01)
    assert (more.seed_variance, more.prompt_variance) == pytest.approx((few.seed_variance, few.prompt_variance))
    assert none == fewer


def test_interval_covers_the_true_score_where_a_third_could_not_be_judged():
    panels, truths = _sweeps(400, seeds=(5,), prompts=200, spread=(0.1, 0.3))
    chance = np.random.default_rng(3)
    for panel in panels:
        panel[:, chance.random(200) < 0.35] = np.nan

    covered = [e.low <= truth <= e.high for e, truth in zip(estimates(panels), truths, strict=True)]

    assert np.mean(covered) >= 0.94


def test_p_value_of_a_rare_difference_has_no_floor():
    chance = np.random.default_rng(5)
    noise = chance.choice([-1.0, 0.0, 1.0], p=[0.1, 0.8, 0.1], size=(5, 400))
    luck = np.array([[-0.01], [0.01], [0.0], [0.02], [-0.02]])
    panels = [noise - noise.mean() + luck + shift for shift in np.linspace(0.02, 0.6, 30)]

    found = [estimate.p for estimate in estimates(panels, difference=True)]

    assert found == sorted(found, reverse=True)
    assert len(set(found)) == len(found)
    assert found[-1] < 1e-5
    assert max(holm(found[-1:] + [found[-1]] * 300)) < 0.05
    steps = [before / after for before, after in pairwise(found) if before < 0.05]
    assert max(steps) < 4, "no jump"


def test_p_value_of_scores_without_prompts_is_students():
    column = np.array([[0.02], [0.11], [0.05], [0.19]])

    (found,) = estimates([column], difference=True)

    assert found.p == pytest.approx(stats.ttest_1samp(column[:, 0], 0).pvalue, rel=1e-9)


def test_p_value_is_the_share_of_drawn_errors_beyond_the_difference():
    chance = np.random.default_rng(3)
    panel = chance.choice([-1.0, 0.0, 1.0], p=[0.1, 0.65, 0.25], size=(4, 150)) + np.array([[-0.1], [0.05], [0.1], [0]])
    (found,) = estimates([panel], difference=True)
    # The model in docs/report.md, drawn: seeds by Student's t, prompts by a normal distribution.
    seed_error, prompt_error = (found.seed_variance / 4) ** 0.5, found.prompt_variance**0.5
    errors = chance.standard_t(3, 2_000_000) * seed_error + chance.standard_normal(2_000_000) * prompt_error

    assert 0.01 < found.p < 0.2
    assert found.p == pytest.approx((np.abs(errors) >= found.mean).mean(), abs=5e-4)


def test_p_value_where_nothing_varied_is_that_of_a_sign_test():
    whole, few, equal = estimates([np.ones((3, 6)), np.full((3, 1), 0.2), np.zeros((3, 6))], difference=True)

    assert equal.p == 1.0
    assert whole.p == pytest.approx(2 * 0.5**6)
    assert few.p == pytest.approx(2 * 0.5**3)


def test_more_seeds_do_not_help_where_too_few_prompts_hide_a_difference():
    (few, many) = estimates([np.zeros((3, 40)), np.zeros((3, 400))], difference=True)

    assert few.high > 0.02 > many.high
    assert more_seeds(few, 3, 0.02) == float("inf")
    assert more_seeds(many, 3, 0.02) == 0


def test_more_seeds_reach_the_width_that_was_asked_for():
    variance = 0.03**2
    needed = more_seeds(Estimate(0.0, 0.0, 0.0, 1.0, variance, 0.0), 3, 0.02)

    half = [stats.t.ppf(0.975, n - 1) * (variance / n) ** 0.5 for n in (3 + needed - 1, 3 + needed)]
    assert half[1] <= 0.02 < half[0]
    assert more_seeds(Estimate(0.0, 0.0, 0.0, 1.0, variance, 0.02**2), 3, 0.02) == float("inf")
    assert more_seeds(Estimate(0.0, 0.0, 0.0, 1.0, 0.0, 0.0), 3, 0.02) == 0


def test_holm_steps_down():
    assert holm([0.01, 0.04, 0.03, float("nan")])[:3] == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
