"""LLM-TOPLA: the search and the vote, by hand-computed examples."""

from random import Random

import numpy as np
import pytest
from test_focal_diversity import FAILED

from harness.ensembles.topla import Topla
from harness.mechanisms.plurality import Ballot, Fitness
from harness.protocols import NO_VOTE, Votes

QUALITY = 1.0 - FAILED
"""A is right on row 4, B on rows 1 and 4, C on rows 1 and 2; with two classes, 1 is right and 0 is wrong."""
VOTES = Votes(QUALITY.astype(int), 2, np.ones(4))


def fitted(**settings):
    return Topla(**settings).fit(VOTES, QUALITY, rng=Random(0))


def test_diversity_alone_picks_a_and_c():
    subset = fitted(diversity_weight=1.0, score_weight=0.0).subset

    assert subset.members == (0, 2)
    assert subset.diversity == pytest.approx(5 / 12)


def test_fused_failures_are_the_rows_on_which_more_than_half_of_the_members_fail():
    """Rows 2 and 3: half, as the best members B and C, and less than A's three quarters. No gain over the best."""
    chosen = Ballot(VOTES.classes, QUALITY.mean(axis=0)).winners(np.ones(3))

    assert (1 - QUALITY[np.arange(4), chosen]).tolist() == [0, 1, 1, 0]
    assert QUALITY[np.arange(4), chosen].mean() == QUALITY.mean(axis=0).max()


def test_fitness_is_the_weighted_sum_with_a_penalty_for_its_share_of_the_members():
    fitness = Fitness(VOTES.classes, QUALITY, diversity_weight=0.6, score_weight=0.4, size_penalty=0.1)

    # The vote of all has a score of 1/2 (the test above).
    assert fitness.of((0, 1, 2)).fitness == pytest.approx(0.6 * 47 / 180 + 0.4 * 0.5 - 0.1)


def test_largest_subset_is_respected_and_of_equal_subsets_the_smallest_is_taken():
    classes = np.array([[0, 0, 0, 1]] * 4)
    quality = np.array([[1.0, 1.0, 1.0, 0.0]] * 4)
    fit = Topla(score_weight=1.0, diversity_weight=0.0).fit(Votes(classes, 2, np.ones(4)), quality, rng=Random(0))

    assert fit.subset.members == (0, 1)
    assert len(fitted(score_weight=1.0, diversity_weight=0.0, max_members=2).subset.members) == 2


def test_tie_goes_to_the_class_of_the_best_member_and_the_text_to_its_best_voter():
    scores = np.array([0.2, 0.9, 0.5, 0.4])
    ballot = Ballot(np.array([[0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1]]), scores)

    assert ballot.winners(np.ones(4)).tolist() == [1, 1, 1]
    # Without the best member: the tie of the first row is gone, that of the second is between the two others.
    assert ballot.winners(np.array([1, 0, 1, 1])).tolist() == [2, 2, 2]


def test_answers_without_a_class_win_only_if_there_is_no_other():
    scores = np.array([0.9, 0.8, 0.1])
    ballot = Ballot(np.array([[NO_VOTE, NO_VOTE, 0], [NO_VOTE, NO_VOTE, NO_VOTE]]), scores)

    assert ballot.winners(np.ones(3)).tolist() == [2, 0]


def test_pool_may_differ_between_rows():
    ballot = Ballot(np.array([[0, 1, 1], [0, 1, 1]]), np.array([0.9, 0.5, 0.4]))

    assert ballot.winners(np.array([[1, 0, 0], [0, 1, 1]])).tolist() == [0, 1]
