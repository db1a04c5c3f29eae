"""Cross-fitting: every row is answered once, and controls have the scores that a count by hand gives."""

import numpy as np
import pytest

from harness.ensembles.topla import Topla
from harness.errors import DataError
from harness.protocols import Votes
from harness.stages.cross_fit import ALL, BEST, BY_SCORE, ENSEMBLE, MEAN, ORACLE, RANDOM, cross_fit


def votes_of(quality):
    return Votes(np.nan_to_num(quality, nan=0.0).astype(int), 2, np.ones(len(quality)))


def test_folds_differ_in_size_by_at_most_one_row_and_depend_on_the_seed():
    quality = np.tile([1.0, 0.0, 1.0], (23, 1))
    first, second = (cross_fit(Topla(), votes_of(quality), quality, folds=5, seed=seed).folds for seed in (0, 1))

    assert sorted(np.bincount(first)) == [4, 4, 5, 5, 5]
    assert (first != second).any()


def test_scores_of_controls_are_those_of_the_members_that_they_take():
    """A is right on 4 of 10 rows, B and C together on 8, everywhere else all are wrong in one way."""
    quality = np.array([[1, 0, 0]] * 2 + [[1, 1, 1]] * 2 + [[0, 1, 1]] * 6, dtype=float)
    found = cross_fit(Topla(diversity_weight=0.0, score_weight=1.0), votes_of(quality), quality, folds=5, seed=0)

    scores = found.scores(quality)

    assert (scores[BEST], scores[ALL], scores[BY_SCORE], scores[ORACLE]) == (0.8, 0.8, 0.8, 1.0)
    assert scores[MEAN] == pytest.approx((4 + 8 + 8) / 30)
    assert scores[ENSEMBLE] == scores[BY_SCORE]
    assert 0.4 <= scores[RANDOM] <= 0.8
    assert found.pools.sum(axis=1).tolist() == [len(found.fits[fold]["members"]) for fold in found.folds]


def test_row_that_could_not_be_judged_is_answered_but_nothing_is_fitted_to_it():
    quality = np.array([[1.0, 0.0]] * 6)
    quality[0] = np.nan, 0.0
    found = cross_fit(Topla(), votes_of(quality), quality, folds=3, seed=0)

    assert [fit["rows"] for fit in found.fits] == [3 if found.folds[0] != fold else 4 for fold in range(3)]
    assert found.scores(quality)[ORACLE] == pytest.approx(5 / 6)


def test_fewer_rows_than_folds_and_no_judged_row_are_refused():
    with pytest.raises(DataError, match="5 folds was given 4 rows"):
        cross_fit(Topla(), votes_of(np.ones((4, 2))), np.ones((4, 2)), folds=5, seed=0)
    unjudged = np.full((6, 2), np.nan)
    with pytest.raises(DataError, match="no row outside fold 1 of 2 could be judged"):
        cross_fit(Topla(), votes_of(unjudged), unjudged, folds=2, seed=0)
