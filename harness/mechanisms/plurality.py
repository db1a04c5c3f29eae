"""Plurality: the answer of the class that most members vote for, and the best subset of members under it.

A tie is decided by the best member among the tied classes, and the text is that of the winning class's best member;
published code breaks ties by the lowest class, which favours whatever is listed first.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.mechanisms.focal_diversity import failures, focal_diversity
from harness.protocols.ensembles import NO_VOTE

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Ballot:
    """Votes prepared for counting them in many subsets of the members.

    Args:
        classes: ``[rows, members]``, with ``NO_VOTE`` for no vote.
        scores: ``[members]``, mean quality; decides ties. Equal scores are decided by position.
    """

    def __init__(self, classes: NDArray[Any], scores: NDArray[Any]) -> None:
        """Compare the votes of all pairs of members."""
        voted = classes != NO_VOTE
        self._equal = ((classes[:, :, None] == classes[:, None, :]) & voted[:, :, None]).astype("float64")
        self._rank = _ranks(scores)

    def winners(self, pool: NDArray[Any]) -> NDArray[Any]:
        """Return the member whose answer is taken in each row.

        Args:
            pool: ``[members]`` or ``[rows, members]``, 1 for the members that vote; at least one in each row.
        """
        import numpy as np

        pool = np.broadcast_to(np.asarray(pool, dtype="float64"), self._equal.shape[:2])
        votes = np.einsum("rij,rj->ri", self._equal, pool)
        chosen: NDArray[Any] = np.where(pool > 0, votes + self._rank, -1.0).argmax(axis=1)
        return chosen


def best_voters(classes: NDArray[Any], pool: NDArray[Any], chosen: NDArray[Any], scores: NDArray[Any]) -> NDArray[Any]:
    """Return the member whose answer stands for a class: the best in the pool that voted for it, or the best at all.

    Args:
        classes: ``[rows, members]``, the votes.
        pool: ``[rows, members]``, whether a member was asked.
        chosen: ``[rows]``, the class of each row.
        scores: ``[members]``, mean quality.
    """
    import numpy as np

    found: NDArray[Any] = np.where(pool, (classes == chosen[:, None]) + _ranks(scores), -1.0).argmax(axis=1)
    return found


def _ranks(scores: NDArray[Any]) -> NDArray[Any]:
    """Return a number from 0 to below 1 for each member, higher for better ones: added to votes, it decides ties."""
    import numpy as np

    order = np.argsort(-np.asarray(scores, dtype="float64"), kind="stable")
    ranks: NDArray[Any] = np.empty(len(order))
    ranks[order] = 1 - (1 + np.arange(len(order))) / (1 + len(order))
    return ranks


class Subset(NamedTuple):
    """A subset of the members and what it is worth on the rows of the fit.

    Attributes:
        members: its members, by position.
        diversity: its focal diversity.
        score: mean quality of the answers that its plurality takes.
        fitness: the weighted sum that was maximized.
    """

    members: tuple[int, ...]
    diversity: float
    score: float
    fitness: float


class Fitness:
    """The worth of subsets on graded rows.

    Args:
        classes: ``[rows, members]``, the votes.
        quality: ``[rows, members]``, the quality of the answers, all of them judged.
        diversity_weight: weight of the focal diversity.
        score_weight: weight of the plurality's score.
        size_penalty: subtracted per share of the members that the subset has.
    """

    def __init__(
        self,
        classes: NDArray[Any],
        quality: NDArray[Any],
        *,
        diversity_weight: float,
        score_weight: float,
        size_penalty: float = 0.0,
    ) -> None:
        """Prepare the votes."""
        import numpy as np

        self.scores: NDArray[Any] = quality.mean(axis=0)
        """The mean quality of each member."""
        self._quality, self._failed = quality, failures(quality)
        self._ballot = Ballot(classes, self.scores)
        self._rows = np.arange(len(quality))
        self._weights = diversity_weight, score_weight, size_penalty

    def of(self, members: Sequence[int]) -> Subset:
        """Return the worth of a subset of at least two members."""
        import numpy as np

        chosen = list(members)
        pool = np.zeros(self._quality.shape[1])
        pool[chosen] = 1
        diversity = focal_diversity(self._failed[:, chosen])
        score = float(self._quality[self._rows, self._ballot.winners(pool)].mean())
        by_diversity, by_score, by_size = self._weights
        fitness = by_diversity * diversity + by_score * score - by_size * len(chosen) / len(pool)
        return Subset(tuple(chosen), diversity, score, fitness)

    def best(self, largest: int | None = None) -> Subset:
        """Return the best of all subsets of at least two members; of equal ones the smallest, then the first.

        Args:
            largest: maximum number of members; None allows all.
        """
        count = self._quality.shape[1]
        sizes = range(2, (largest or count) + 1)
        subsets = (self.of(members) for size in sizes for members in combinations(range(count), size))
        return max(subsets, key=lambda subset: round(subset.fitness, 12))
