"""LLM-TOPLA: the search and the vote, by hand-computed examples."""

import os
from importlib.util import find_spec
from random import Random

import numpy as np
import pytest
import torch
from test_focal_diversity import FAILED

from harness.ensembles.topla import ClassNetwork, FittedTopla, Topla, probabilities
from harness.mechanisms.plurality import Ballot, Fitness, Subset
from harness.protocols import NO_VOTE, Votes

needs_pygad = pytest.mark.skipif(
    find_spec("pygad") is None and not os.environ.get("HARNESS_CI"),
    reason="pygad is not installed (pip install 'harness[genetic]')",
)
QUALITY = 1.0 - FAILED
"""A is right on row 4, B on rows 1 and 4, C on rows 1 and 2; with two classes, 1 is right and 0 is wrong."""
VOTES = Votes(QUALITY.astype(int), 2, np.ones(4))


def fitted(**settings):
    return Topla(**settings).fit(VOTES, QUALITY, None, rng=Random(0))


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
    fit = Topla(score_weight=1.0, diversity_weight=0.0).fit(Votes(classes, 2, np.ones(4)), quality, None, rng=Random(0))

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


def test_soft_vote_weighs_how_sure_the_members_are_and_takes_the_words_of_one_that_agrees():
    """Row 1: 0.9 against two times 0.6 for the other class, mean (0.9 + 0.4 + 0.4) / 3 = 0.567; row 2: all agree."""
    chances = np.array([[[0.9, 0.1], [0.4, 0.6], [0.4, 0.6]], [[0.2, 0.8], [0.3, 0.7], [0.1, 0.9]]])
    votes = Votes(np.array([[0, 1, 1], [1, 1, 1]]), 2, np.ones(2), np.log(chances))
    fit = FittedTopla(Subset((0, 1, 2), 0.0, 0.0, 0.0), np.array([0.1, 0.5, 0.6]))

    assert fit.choose(votes).members.tolist() == [0, 2]
    assert fit.choose(votes._replace(likelihoods=None)).members.tolist() == [2, 2]


def test_probabilities_are_normalised_over_the_classes():
    votes = Votes(np.zeros((1, 2), dtype=int), 2, np.ones(1), np.array([[[-700.0, -701.0], [0.0, 0.0]]]))

    found = probabilities(votes, (0, 1))

    assert found[0, 0] == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.e)])
    assert found[0, 1].tolist() == [0.5, 0.5]


def test_network_learns_that_a_member_is_always_wrong_which_no_vote_can_use():
    """Both members are sure of the wrong class: a vote fails everywhere, the network inverts them."""
    right = np.arange(40) % 2
    chances = np.where(np.arange(2) == right[:, None], 0.1, 0.9)
    votes = Votes(1 - np.stack([right, right], axis=1), 2, np.ones(40), np.log(np.stack([chances, chances], axis=1)))
    network = ClassNetwork(hidden=(8,), epochs=200, batch_size=20, learning_rate=0.05)
    method = Topla(combine="learned", network=network)

    fit = method.fit(votes, np.zeros((40, 2)), right, rng=Random(0))

    with torch.no_grad():
        classes = fit.model(torch.from_numpy(probabilities(votes, fit.subset.members)).flatten(1)).argmax(dim=1)
    assert classes.tolist() == right.tolist()
    # Nobody voted for it, so the best member speaks for it.
    assert set(fit.choose(votes).members.tolist()) == {0}


def test_rows_without_a_right_class_are_not_trained_on():
    network = ClassNetwork(hidden=(4,), epochs=3)
    inputs = np.random.default_rng(0).random((6, 2, 2)).astype("float32")

    with_it = network.trained(inputs, np.array([0, 1, 0, 1, NO_VOTE, NO_VOTE]), 2, seed=1)
    without = network.trained(inputs[:4], np.array([0, 1, 0, 1]), 2, seed=1)

    assert all(torch.equal(a, b) for a, b in zip(with_it.parameters(), without.parameters(), strict=True))


@pytest.mark.parametrize(
    ("settings", "members", "message"),
    [
        ({}, 13, "`search`: all subsets of 13 members are too many; expected `genetic`, or at most 12 members"),
        ({"max_members": 4}, 3, "`max_members`: 4 of 3 members"),
    ],
)
def test_number_of_members_that_does_not_fit_is_refused(settings, members, message):
    (problem,) = Topla(**settings).unsuitable(members)

    assert str(problem).startswith(message)


def test_genetic_search_without_its_package_is_refused(monkeypatch):
    monkeypatch.setattr("harness.ensembles.topla.find_spec", lambda _: None)

    (problem,) = Topla(search="genetic").unsuitable(13)

    assert "`genetic` needs the package pygad, which is not installed" in str(problem)
    assert "pip install 'harness[genetic]'" in str(problem)


@needs_pygad
def test_genetic_search_finds_what_brute_force_finds():
    chance = np.random.default_rng(0)
    quality = (chance.random((40, 6)) < 0.6).astype(float)
    votes = Votes(quality.astype(int), 2, np.ones(40))

    found, best = (Topla(search=search).fit(votes, quality, None, rng=Random(0)) for search in ("genetic", None))

    assert found.subset == best.subset


@needs_pygad
@pytest.mark.parametrize("seed", range(4))
def test_genetic_search_finds_a_subset_of_few_among_many(seed):
    quality = (np.random.default_rng(seed).random((20, 13)) < 0.6).astype(float)
    votes = Votes(quality.astype(int), 2, np.ones(20))

    found = Topla(search="genetic", max_members=2).fit(votes, quality, None, rng=Random(seed))

    assert len(found.subset.members) == 2


def test_network_belongs_to_learned_fusion_only():
    assert [str(each) for each in Topla(combine="learned").problems()] == [
        "`network`: is missing; expected it with `combine: learned` and null otherwise"
    ]
    assert "not used by `combine: None`" in str(Topla(network=ClassNetwork()).problems()[0])
