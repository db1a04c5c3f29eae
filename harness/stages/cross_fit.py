"""Cross-fitting of an ensemble, with the controls that its score is read against.

The rows are divided into folds by a seeded permutation. What is answered in a fold is chosen by a method that was
fitted to the other folds, so no grade of a row reaches the choice made for it. All controls but the oracle obey the
same rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.engine.seeding import derive, generator
from harness.errors import DataError
from harness.mechanisms.plurality import Ballot, Fitness
from harness.protocols import EnsembleMethod, Votes

if TYPE_CHECKING:
    from numpy.typing import NDArray

DRAWS = 20
"""Number of random subsets of which the control is the mean."""
ENSEMBLE, BEST, ALL, BY_SCORE = "ensemble", "best_member", "all_members", "score_only"
MEAN, RANDOM, ORACLE = "mean_member", "random_subset", "oracle"


class CrossFit(NamedTuple):
    """The choices of an ensemble and of its controls.

    Attributes:
        folds: ``[rows]``, the fold of each row.
        pools: ``[rows, members]``, the members that the ensemble asked.
        chosen: by name, ``[rows]``, the member whose answer is taken: by the ensemble (``ensemble``), the member with
            the best score on the other folds (``best_member``), a vote of all (``all_members``), and a vote of the
            subset with the best score, whatever its diversity (``score_only``).
        random: ``[draws, rows]``, the same for random subsets of the size that the ensemble asked.
        fits: what the method chose in each fold, and the number of rows that it was fitted to (``rows``).
    """

    folds: NDArray[Any]
    pools: NDArray[Any]
    chosen: Mapping[str, NDArray[Any]]
    random: NDArray[Any]
    fits: Sequence[Mapping[str, object]]

    def scores(self, quality: NDArray[Any]) -> dict[str, float | None]:
        """Return the mean quality of the ensemble and of each control; None where no answer could be judged.

        Args:
            quality: ``[rows, members]``, NaN for an answer that could not be judged.
        """
        import numpy as np

        rows = np.arange(len(quality))
        judged = ~np.isnan(quality)
        means = {name: _mean(quality[rows, chosen]) for name, chosen in self.chosen.items()}
        best = np.where(judged, quality, -1.0).max(axis=1)
        return {
            **means,
            MEAN: _mean(quality),
            RANDOM: _mean(quality[rows[None, :], self.random]),
            ORACLE: _mean(best[judged.any(axis=1)]),
        }


def cross_fit(
    method: EnsembleMethod,
    votes: Votes,
    quality: NDArray[Any],
    targets: NDArray[Any] | None = None,
    *,
    folds: int,
    seed: int,
) -> CrossFit:
    """Return the choices for every row, each made without the grades of its own fold.

    Args:
        method: the settings of the ensemble.
        votes: the members' votes.
        quality: ``[rows, members]``, 1 for a good answer, 0 for a failure; NaN could not be judged. A row with such an
            answer is answered, but nothing is fitted to it.
        targets: ``[rows]``, the right classes, for methods that learn them; None if there are none.
        folds: number of folds.
        seed: root seed of the division, of random fits and of random subsets.

    Raises:
        DataError: there are fewer rows than folds, or too few of them could be judged.
    """
    import numpy as np

    count, members = quality.shape
    if count < folds:
        raise DataError(f"an ensemble with {folds} folds was given {count} rows; expected a row for each fold")
    fold_of = np.array(_divided(count, folds, generator(seed, "ensemble", "folds")))
    complete = ~np.isnan(quality).any(axis=1)
    pools = np.zeros((count, members), dtype=bool)
    chosen = {name: np.zeros(count, dtype=int) for name in (ENSEMBLE, BEST, ALL, BY_SCORE)}
    random = np.zeros((DRAWS, count), dtype=int)
    fits: list[Mapping[str, object]] = []
    for fold in range(folds):
        fit, held = (fold_of != fold) & complete, fold_of == fold
        if not fit.any():
            raise DataError(f"no row outside fold {fold + 1} of {folds} could be judged, so nothing can be fitted")
        seen, asked = votes.rows(fit), votes.rows(held)
        fitted = method.fit(
            seen,
            quality[fit],
            None if targets is None else targets[fit],
            rng=Random(derive(seed, "ensemble", "fit", str(fold))),
        )
        choice = fitted.choose(asked)
        pools[held], chosen[ENSEMBLE][held] = choice.pools, choice.members
        fitness = Fitness(seen.classes, quality[fit], diversity_weight=0.0, score_weight=1.0)
        ballot = Ballot(asked.classes, fitness.scores)
        chosen[BEST][held] = int(np.argmax(fitness.scores))
        chosen[ALL][held] = ballot.winners(np.ones(members))
        by_score = fitness.best()
        chosen[BY_SCORE][held] = ballot.winners(_pool(by_score.members, members))
        size = max(1, round(float(choice.pools.sum(axis=1).mean())))
        draws = generator(seed, "ensemble", "random", str(fold))
        for number in range(DRAWS):
            random[number, held] = ballot.winners(_pool(draws.sample(range(members), size), members))
        fits.append({**fitted.facts, "rows": int(fit.sum())})
    return CrossFit(fold_of, pools, chosen, random, fits)


def _divided(count: int, folds: int, rng: Random) -> list[int]:
    """Return the fold of each row; sizes differ by at most one."""
    found = [index % folds for index in range(count)]
    rng.shuffle(found)
    return found


def _pool(chosen: Sequence[int], members: int) -> NDArray[Any]:
    import numpy as np

    pool = np.zeros(members)
    pool[list(chosen)] = 1
    return pool


def _mean(values: NDArray[Any]) -> float | None:
    import numpy as np

    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None
