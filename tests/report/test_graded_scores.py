"""Graded verdicts (0 to 1) are means: their intervals and tests come from how they vary, not from proportions."""

import numpy as np
import pytest
from scipy import special, stats

from harness.report.stats.interval import estimates

GRADES = np.array([[0.2, 0.6], [0.4, 0.8]])
"""Two seeds, two prompts. Seed means 0.4 and 0.6, prompt means 0.3 and 0.7, no residual."""


@pytest.mark.parametrize("difference", [False, True])
def test_variances_of_graded_verdicts_are_those_of_the_two_way_layout(difference):
    """MS_seed = 2 * 0.02 = 0.04 and MS_prompt = 2 * 0.08 = 0.16; the error of the mean is MS / 4."""
    (found,) = estimates([GRADES], difference=difference)

    assert found.mean == pytest.approx(0.5)
    assert found.seed_variance == pytest.approx(2 * 0.04 / 4)
    assert found.prompt_variance == pytest.approx(0.16 / 4)


def test_difference_of_graded_verdicts_is_tested_by_students_t():
    """Seeds differ by 0.1 and 0.3 on every prompt: mean 0.2, error 0.1, one degree of freedom, t = 2."""
    first = np.array([[0.5, 0.9], [0.7, 0.6]])
    second = first - np.array([[0.1], [0.3]])

    (found,) = estimates([first - second], difference=True)

    half = stats.t.ppf(0.975, 1) * 0.1
    assert found.p == pytest.approx(1 - 2 / np.pi * np.arctan(2), abs=0.01)
    assert (found.low, found.high) == pytest.approx((max(0.2 - half, -1), min(0.2 + half, 1)), abs=0.02)


def test_interval_of_graded_verdicts_is_as_narrow_as_they_are_alike():
    """400 prompts at 0.45 or 0.55: a standard deviation of 0.05, where a proportion of one half has 0.5."""
    graded = np.tile(np.repeat([0.45, 0.55], 200), (3, 1))

    (narrow, wide) = estimates([graded, np.round(graded)])

    half = 1.96 * 0.05 / 400**0.5
    assert (narrow.low, narrow.high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.0005)
    assert wide.high - wide.low == pytest.approx(10 * (narrow.high - narrow.low), rel=0.05)


def test_interval_of_one_and_the_same_grade_is_what_may_be_unseen():
    """At most a fraction u of prompts has another grade, which moves the mean by at most u * 0.25 down, u * 0.75 up."""
    (found, never) = estimates([np.full((3, 100), 0.25), np.zeros((3, 100))])

    unseen = stats.binomtest(0, 100).proportion_ci(0.95).high
    assert (found.low, found.high) == pytest.approx((0.25 - 0.25 * unseen, 0.25 + 0.75 * unseen))
    assert (never.low, never.high) == pytest.approx((0.0, unseen))


def test_interval_covers_the_true_mean_grade_in_95_of_100_sweeps():
    """Grades are spread around a logistic curve of seed and prompt effects by a beta distribution."""
    chance = np.random.default_rng(20260401)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    panels, truths = [], []
    for _ in range(1000):
        spread, difficulty = chance.uniform(0.2, 1.0), chance.uniform(1.0, 2.0)
        base = special.logit(chance.uniform(0.05, 0.9)) * 1.4
        logits = base + spread * chance.standard_normal((4, 1)) + difficulty * chance.standard_normal((1, 200))
        expected = special.expit(logits).clip(1e-6, 1 - 1e-6)
        panels.append(chance.beta(3 * expected, 3 * (1 - expected)))
        truths.append((special.expit(base + np.hypot(spread, difficulty) * nodes) * weights).sum() / weights.sum())

    covered = [low <= truth <= high for (_, low, high, *_), truth in zip(estimates(panels), truths, strict=True)]

    assert 0.93 <= np.mean(covered) <= 0.97
