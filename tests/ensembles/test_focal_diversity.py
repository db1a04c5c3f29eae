"""Focal diversity against values computed by hand."""

import numpy as np
import pytest

from harness.mechanisms.focal_diversity import failures, focal_diversities, focal_diversity

FAILED = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, 1]])
"""Four rows, members A, B, C.

A fails on rows 1 to 3, where 1, 2 and 3 members fail: 1 - (0 + 2 + 6) / (2 * (1 + 2 + 3)) = 1/3. B fails on rows 2 and
3: 1 - (2 + 6) / (2 * (2 + 3)) = 1/5. C fails on rows 3 and 4: 1 - (6 + 0) / (2 * (3 + 1)) = 1/4. Mean 47/180.
"""


def test_members_and_mean_are_those_computed_by_hand():
    assert focal_diversities(FAILED) == pytest.approx([1 / 3, 1 / 5, 1 / 4])
    assert focal_diversity(FAILED) == pytest.approx(47 / 180)


@pytest.mark.parametrize(("pair", "expected"), [((0, 1), 0.1), ((0, 2), 5 / 12), ((1, 2), 1 / 3)])
def test_pairs_are_those_computed_by_hand(pair, expected):
    assert focal_diversity(FAILED[:, pair]) == pytest.approx(expected)


def test_of_two_members_it_follows_from_the_share_of_rows_on_which_the_other_is_right():
    chance = np.random.default_rng(0)
    failed = chance.random((50, 2)) < 0.5

    for member in (0, 1):
        right = 1 - failed[failed[:, member], 1 - member].mean()
        assert focal_diversities(failed)[member] == pytest.approx(right / (2 - right))


def test_all_failing_together_is_0_and_never_two_at_once_is_1():
    assert focal_diversity(np.ones((3, 4))) == 0
    assert focal_diversity(np.eye(3)) == 1


def test_member_without_failures_is_fully_diverse():
    assert focal_diversities(np.array([[0, 1, 1], [0, 1, 1]])).tolist() == [1, 0.5, 0.5]


def test_answer_fails_at_half_its_quality_and_not_if_it_was_not_judged():
    assert failures(np.array([[0.0, 0.5, 0.6, 1.0, np.nan]])).tolist() == [[True, True, False, False, False]]
