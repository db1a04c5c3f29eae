"""LLM-TOPLA: a small subset of the models whose failures differ, and a vote among its answers.

Tekin et al., LLM-TOPLA: Efficient LLM Ensemble by Maximising Diversity (Findings of EMNLP 2024, arXiv 2410.03953). The
subset maximizes ``diversity_weight * focal diversity + score_weight * score of the vote - size_penalty * |E| / N`` over
the rows of the fit.

Deviations: the published repository contains no search; the weights, the penalty and the genetic search are those of
the authors' later repositories. Here all subsets are tried, which the authors report to find the same ones. Ties go to
the best member instead of the lowest class. Scores are means over rows, not of batch means.

Fidelity: focal diversity and the arithmetic of the vote are tested against values computed by hand; no numbers of the
authors are reproduced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.engine.checks import not_negative
from harness.errors import Problem
from harness.mechanisms.plurality import Ballot, Fitness, Subset
from harness.protocols.ensembles import Choice, Votes

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST = 12
"""Maximum number of members of which all subsets are tried: 4,083 subsets."""


@final
@dataclass(frozen=True, kw_only=True)
class Topla:
    """Settings of LLM-TOPLA.

    Attributes:
        diversity_weight: weight of the focal diversity.
        score_weight: weight of the vote's score.
        size_penalty: subtracted from the fitness per share of the members that a subset has.
        max_members: largest subset; null allows all.
    """

    name: ClassVar[str] = "topla"
    version: ClassVar[int] = 1

    diversity_weight: float = 0.5
    score_weight: float = 0.5
    size_penalty: float = 0.0
    max_members: int | None = None

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = not_negative(self, "diversity_weight", "score_weight", "size_penalty")
        if self.max_members is not None and self.max_members < 2:
            found.append(Problem("max_members", f"{self.max_members} is too small; expected 2 or more"))
        if self.diversity_weight == self.score_weight == 0:
            found.append(Problem("score_weight", "both weights are 0; expected one of them above 0"))
        return found

    def unsuitable(self, members: int) -> list[Problem]:
        """Return why it cannot be used with this number of members."""
        if members > MOST:
            return [Problem("", f"all subsets of {members} members are too many; expected at most {MOST} members")]
        if self.max_members is not None and self.max_members > members:
            reason = f"{self.max_members} of {members} members; expected at most as many as there are"
            return [Problem("max_members", reason)]
        return []

    def fit(self, votes: Votes, quality: NDArray[Any], *, rng: Random) -> FittedTopla:  # noqa: ARG002 - deterministic
        """Choose the subset."""
        fitness = Fitness(
            votes.classes,
            quality,
            diversity_weight=self.diversity_weight,
            score_weight=self.score_weight,
            size_penalty=self.size_penalty,
        )
        return FittedTopla(fitness.best(self.max_members), fitness.scores)


@final
@dataclass(frozen=True)
class FittedTopla:
    """A chosen subset, and the scores of all members, which decide ties."""

    subset: Subset
    scores: NDArray[Any]

    @property
    def facts(self) -> Mapping[str, object]:
        """The subset, with its diversity, score and fitness on the rows of the fit."""
        return {**self.subset._asdict(), "members": list(self.subset.members)}

    def choose(self, votes: Votes) -> Choice:
        """Take the answer of the class that most members of the subset vote for."""
        import numpy as np

        pool = np.zeros(votes.classes.shape, dtype=bool)
        pool[:, list(self.subset.members)] = True
        return Choice(Ballot(votes.classes, self.scores).winners(pool), pool)
