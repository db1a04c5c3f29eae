"""Every ensemble method: what it answers in a fold does not depend on the grades of that fold."""

from dataclasses import replace
from functools import cache
from random import Random

import numpy as np
import pytest
from composed import compose

from harness.config.shipped import CONF
from harness.engine.build import build
from harness.protocols import EnsembleMethod, Votes
from harness.stages.cross_fit import ENSEMBLE, cross_fit

METHODS = sorted(path.stem for path in (CONF / "ensemble").glob("*.yaml") if path.stem != "none")
ROWS, MEMBERS, FOLDS = 60, 4, 3


@cache
def settings(name):
    """The shipped settings; a method that trains does so for a few passes only."""
    (composition,) = compose([f"ensemble={name}", "ensemble.members=[sft,booster]"])
    method = build(EnsembleMethod, composition.data["ensemble"]["method"])
    if hasattr(method, "passes"):
        return replace(method, passes=5)
    network = getattr(method, "network", None)
    return replace(method, network=replace(network, epochs=5)) if network is not None else method


def world(seed):
    """Two classes, members that are right on 50 to 80 percent of the rows and more or less sure of it."""
    chance = np.random.default_rng(seed)
    right = chance.integers(0, 2, ROWS)
    quality = (chance.random((ROWS, MEMBERS)) < np.array([0.5, 0.6, 0.7, 0.8])).astype(float)
    classes = np.where(quality == 1, right[:, None], 1 - right[:, None])
    sure = chance.random((ROWS, MEMBERS)) * 3
    likelihoods = np.stack([np.where(classes == label, sure, 0.0) for label in (0, 1)], axis=2)
    return Votes(classes, 2, chance.integers(3, 9, ROWS), likelihoods), quality, right


def test_methods_are_discovered():
    assert {"topla", "topla_soft_vote", "topla_learned", "decider"} <= set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_permuted_grades_of_a_fold_leave_its_answers_bit_for_bit(name):
    votes, quality, right = world(0)
    before = cross_fit(settings(name), votes, quality, right, folds=FOLDS, seed=5)

    for fold in range(FOLDS):
        held = np.flatnonzero(before.folds == fold)
        order = np.random.default_rng(fold).permutation(held)
        permuted, targets = quality.copy(), right.copy()
        permuted[held], targets[held] = quality[order], right[order]
        assert (permuted != quality).any()
        assert (targets != right).any()
        after = cross_fit(settings(name), votes, permuted, targets, folds=FOLDS, seed=5)

        assert (after.folds == before.folds).all()
        assert (after.pools[held] == before.pools[held]).all()
        assert (after.random[:, held] == before.random[:, held]).all()
        for control, chosen in before.chosen.items():
            assert (after.chosen[control][held] == chosen[held]).all(), control


@pytest.mark.parametrize("name", METHODS)
def test_grades_of_the_other_folds_do_decide(name):
    votes, quality, right = world(0)
    # Members 0 and 1 are now always right and the others always wrong.
    swapped = np.tile(np.array([1.0, 1.0, 0.0, 0.0]), (ROWS, 1))

    before, after = (
        cross_fit(settings(name), votes, graded, targets, folds=FOLDS, seed=5)
        for graded, targets in ((quality, right), (swapped, votes.classes[:, 0]))
    )

    assert (before.chosen[ENSEMBLE] != after.chosen[ENSEMBLE]).any()


@pytest.mark.parametrize("name", METHODS)
def test_same_seed_gives_the_same_choice_and_a_choice_is_one_of_the_members_asked(name):
    votes, quality, right = world(1)
    fits = [settings(name).fit(votes, quality, right, rng=Random(3)).choose(votes) for _ in range(2)]

    assert (fits[0].members == fits[1].members).all()
    assert fits[0].pools.shape == (ROWS, MEMBERS)
    assert fits[0].pools[np.arange(ROWS), fits[0].members].all()
