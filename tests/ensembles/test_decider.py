"""The decider: rewards, returns and gradient by hand, and policies that must find the members that are right."""

from random import Random

import numpy as np
import pytest
import torch

from harness.ensembles.decider import (
    TOO_SMALL,
    BanditView,
    Decider,
    StreamView,
    greedy,
    log_probability,
    rewards,
    standardized_returns,
)
from harness.mechanisms.plurality import Fitness
from harness.protocols import NO_VOTE, Votes


def test_reward_of_a_pool_of_three_of_four_is_that_computed_by_hand():
    """Right 1, wrong -1 - 3/4, and -1 for asking nobody."""
    quality = np.array([[1.0, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
    pools = np.array([[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]], dtype=bool)
    votes = Votes(np.zeros((3, 4), dtype=int), 2, np.ones(3))

    assert rewards(votes, quality, quality.mean(axis=0), pools, 1.0).tolist() == [1, -1.75, -1]
    assert rewards(votes, quality, quality.mean(axis=0), pools, 0.0).tolist() == [1, -1, -1]


def test_standardized_returns_are_those_computed_by_hand():
    """1 + 0.99 * (-1.75 + 0.99) = 0.2476, -0.76, 1: mean 0.16253, unbiased standard deviation 0.88308."""
    found = standardized_returns(np.array([1, -1.75, 1]), 0.99)

    assert found == pytest.approx([0.09633, -1.04468, 0.94835], abs=5e-6)
    assert standardized_returns(np.array([3.0]), 0.99).tolist() == [0.0]


def test_step_is_the_policy_gradient_that_the_clipped_ratio_has_at_its_own_probabilities():
    """The authors' loss is min(r A, clip(r) A) with r = exp(log pi - log pi detached) = 1."""
    chance = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, generator=chance, requires_grad=True)
    pools = torch.bernoulli(torch.full((5, 3), 0.5), generator=chance)
    advantage = torch.randn(5, generator=chance)

    likely = log_probability(logits, pools)
    ratio = (likely - likely.detach()).exp()
    clipped = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
    (published,) = torch.autograd.grad(clipped, logits, retain_graph=True)
    (ours,) = torch.autograd.grad(-(likely * advantage).mean(), logits)

    assert torch.equal(published, ours)
    # By hand: the gradient of log pi with respect to a logit is pool - probability.
    expected = -(pools - logits.detach().sigmoid()) * advantage[:, None] / 5
    assert torch.allclose(ours, expected)


def test_greedy_asks_whoever_is_more_likely_than_not_and_never_nobody():
    logits = torch.tensor([[1.0, -1.0, 0.5], [-3.0, -1.0, -2.0]])

    assert greedy(logits).tolist() == [[1, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize("state", ["votes", "published"])
def test_policy_with_constant_features_finds_the_member_that_is_always_right(state):
    """A is right; B and C are wrong in the same way and outvote it. Brute force: a pair with A, whose tie A decides."""
    votes = Votes(np.tile([1, 0, 0], (60, 1)), 2, np.ones(60))
    quality = np.tile([1.0, 0.0, 0.0], (60, 1))
    best = Fitness(votes.classes, quality, diversity_weight=0.0, score_weight=1.0).best()
    method = Decider(state=state, passes=60 if state == "votes" else 15, block=20, learning_rate=1e-2, hidden=16)

    choice = method.fit(votes, quality, None, rng=Random(0)).choose(votes)

    assert 0 in best.members
    assert best.score == 1.0
    assert (choice.members == 0).all()


def test_policy_learns_which_member_to_ask_from_what_the_row_shows():
    """A is right on short prompts and B on long ones, and they never agree, so no constant pool is right everywhere."""
    chance = np.random.default_rng(0)
    long = chance.integers(0, 2, 120)
    right = chance.integers(0, 2, 120)
    quality = np.stack([1 - long, long], axis=1).astype(float)
    classes = np.where(quality == 1, right[:, None], 1 - right[:, None])
    votes = Votes(classes, 2, 5 + 10 * long)
    fit, held = np.arange(0, 80), np.arange(80, 120)

    method = Decider(passes=200, block=40, learning_rate=1e-2, hidden=32)
    members = method.fit(votes.rows(fit), quality[fit], None, rng=Random(0)).choose(votes.rows(held)).members

    assert quality[held, members].mean() >= 0.95
    assert quality[held].mean(axis=0).max() < 0.7


def test_features_are_votes_agreement_and_length_without_a_label():
    votes = Votes(np.array([[0, 0, 1], [2, NO_VOTE, 2]]), 3, np.array([4, 8]))

    found = BanditView(votes).features(votes)

    assert found[:, :3].tolist() == [[0.5, 0.5, 0], [0.5, 0, 0.5]]  # share of the other members that agree
    assert found[:, 3:6].tolist() == [[1, 1, 1], [1, 0, 1]]  # whether the member voted at all
    assert found[:, 6].tolist() == [-1, 1]  # length
    assert found[:, 7:].tolist() == [[1, 1, 0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 0, 1]]
    assert BanditView(votes._replace(class_count=None)).width == 7


def test_published_state_has_the_previous_pool_its_statistic_and_its_size_and_nothing_of_the_row():
    quality = np.array([[1.0, 0], [0, 1], [1, 1], [0, 0]])
    votes = Votes(quality.astype(int), 2, np.ones(4))
    view = StreamView(votes, quality, quality.mean(axis=0), window=2)
    states = []

    def network(state):
        states.append(state.tolist())
        return torch.zeros(2)

    pools = iter([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    view.decided(network, votes, lambda logits: torch.tensor([next(pools)]), upto=0)

    # All at first, without answered rows; then a pool of one; then both over rows 1 and 2 (never fail together, the
    # vote a tie that the first wins: right on row 1 only), then over rows 2 and 3.
    assert states[0] == [1, 1, 0, 2]
    assert states[1] == [1, 0, TOO_SMALL, 1]
    assert states[2] == pytest.approx([1, 1, 0.5 * 1 + 0.5 * 0.5, 2])
    assert states[3] == pytest.approx([1, 1, 0.5 * 1 + 0.5 * 0.5, 2])
    # Rows that are answered later start from the last pool.
    view.decided(network, votes.rows(np.array([0])), greedy, upto=None)
    assert states[4] == [0, 1, TOO_SMALL, 1]
