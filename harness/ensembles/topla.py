"""LLM-TOPLA: a small subset of the models whose failures differ, and one answer of it.

Tekin et al., LLM-TOPLA: Efficient LLM Ensemble by Maximising Diversity (Findings of EMNLP 2024, arXiv 2410.03953). The
subset maximizes ``diversity_weight * focal diversity + score_weight * score of the vote - size_penalty * |E| / N`` over
the rows of the fit. Its answer is that of a vote (``plurality``), the class with the highest mean probability
(``soft_vote``), or the class that a network chooses from the members' probabilities (``learned``, TOPLA-Weighted).

Deviations: the published repository contains no search; the weights, the penalty and the genetic search are those of
the authors' later repositories. All subsets are tried, which the authors report to find the same ones, unless there are
more than 12 members. The network has logits and one cross-entropy; the authors' has a sigmoid after every layer and two
softmaxes, so its probabilities stay close to uniform. It is trained for all epochs: their early stopping selects a
checkpoint on rows that, for one of their tasks, it is trained on. Ties go to the best member instead of the lowest
class. Scores are means over rows, not of batch means. Answers to requests have no class probabilities, and every row of
an evaluation has the same right class, so they are always voted on. TOPLA-Summary, which generates, is left out.

Fidelity: focal diversity and the arithmetic of the vote are tested against values computed by hand; no numbers of the
authors are reproduced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from harness.engine.checks import counts, not_negative, positive
from harness.errors import Problem
from harness.mechanisms.plurality import Ballot, Fitness, Subset, best_voters
from harness.protocols import NO_VOTE, Choice, Votes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch.nn import Module

MOST = 12
"""Maximum number of members of which all subsets are tried: 4,083 subsets."""
POPULATION, PARENTS, GENERATIONS, STALE = 100, 50, 1000, 100
"""Genetic search as in the authors' code: individuals, parents, generations, and generations without a gain."""
NEGLECTED = -99.0
"""Fitness of a subset of fewer than two members."""


@final
@dataclass(frozen=True, kw_only=True)
class Topla:
    """Settings of LLM-TOPLA.

    Attributes:
        diversity_weight: weight of the focal diversity.
        score_weight: weight of the vote's score.
        size_penalty: subtracted from the fitness per share of the members that a subset has.
        max_members: largest subset; null allows all.
        search: ``genetic`` searches subsets with PyGAD; null tries all, which needs at most 12 members.
        combine: how the subset's answer to the user's task is chosen: the class with the highest mean probability, or
            that of a network; null is a vote.
        network: the network of ``learned``; null otherwise.
    """

    name: ClassVar[str] = "topla"
    version: ClassVar[int] = 1

    diversity_weight: float = 0.5
    score_weight: float = 0.5
    size_penalty: float = 0.0
    max_members: int | None = None
    search: Literal["genetic"] | None = None
    combine: Literal["soft_vote", "learned"] | None = None
    network: ClassNetwork | None = None

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = not_negative(self, "diversity_weight", "score_weight", "size_penalty")
        if self.max_members is not None and self.max_members < 2:
            found.append(Problem("max_members", f"{self.max_members} is too small; expected 2 or more"))
        if self.diversity_weight == self.score_weight == 0:
            found.append(Problem("score_weight", "both weights are 0; expected one of them above 0"))
        if (self.network is None) == (self.combine == "learned"):
            reason = "is missing" if self.network is None else f"is not used by `combine: {self.combine}`"
            found.append(Problem("network", f"{reason}; expected it with `combine: learned` and null otherwise"))
        return found

    def unsuitable(self, members: int) -> list[Problem]:
        """Return why it cannot be used with this number of members."""
        found = []
        if self.search is None and members > MOST:
            reason = f"all subsets of {members} members are too many; expected `genetic`, or at most {MOST} members"
            found.append(Problem("search", reason))
        if self.search == "genetic" and find_spec("pygad") is None:
            advice = "expected null, or: pip install 'harness[genetic]'"
            found.append(Problem("search", f"`genetic` needs the package pygad, which is not installed; {advice}"))
        if self.max_members is not None and self.max_members > members:
            reason = f"{self.max_members} of {members} members; expected at most as many as there are"
            found.append(Problem("max_members", reason))
        return found

    @property
    def reads_likelihoods(self) -> bool:
        """Whether it needs the members' class probabilities for answers to the user's task."""
        return self.combine is not None

    def fit(self, votes: Votes, quality: NDArray[Any], targets: NDArray[Any] | None, *, rng: Random) -> FittedTopla:
        """Choose the subset, and train the network on it if the method has one."""
        fitness = Fitness(
            votes.classes,
            quality,
            diversity_weight=self.diversity_weight,
            score_weight=self.score_weight,
            size_penalty=self.size_penalty,
        )
        if self.search == "genetic":
            subset = _genetic(fitness, quality.shape[1], self.max_members, rng.getrandbits(31))
        else:
            subset = fitness.best(self.max_members)
        model = None
        if votes.likelihoods is not None and targets is not None and self.network is not None:
            inputs = probabilities(votes, subset.members)
            model = self.network.trained(inputs, targets, votes.likelihoods.shape[2], rng.getrandbits(63))
        return FittedTopla(subset, fitness.scores, model)


@final
@dataclass(frozen=True)
class FittedTopla:
    """A chosen subset.

    Attributes:
        subset: the subset.
        scores: mean quality of all members, which decides ties.
        model: the trained network; None counts votes, or averages probabilities if there are any.
    """

    subset: Subset
    scores: NDArray[Any]
    model: Module | None = None

    @property
    def facts(self) -> Mapping[str, object]:
        """The subset, with its diversity, score and fitness on the rows of the fit."""
        return {**self.subset._asdict(), "members": list(self.subset.members)}

    def choose(self, votes: Votes) -> Choice:
        """Choose a class, and take the answer of the subset's best member that voted for it."""
        import numpy as np

        pool = np.zeros(votes.classes.shape, dtype=bool)
        pool[:, list(self.subset.members)] = True
        if votes.likelihoods is None:
            return Choice(Ballot(votes.classes, self.scores).winners(pool), pool)
        inputs = probabilities(votes, self.subset.members)
        classes = self._class_scores(inputs).argmax(axis=1)
        return Choice(best_voters(votes.classes, pool, classes, self.scores), pool)

    def _class_scores(self, inputs: NDArray[Any]) -> NDArray[Any]:
        import numpy as np
        import torch

        if self.model is None:
            averaged: NDArray[Any] = inputs.mean(axis=1)
            return averaged
        with torch.no_grad():
            return np.asarray(self.model(torch.from_numpy(inputs).flatten(1)))


@final
@dataclass(frozen=True, kw_only=True)
class ClassNetwork:
    """A network from the members' class probabilities to a class: linear layers with a sigmoid between, and logits.

    Attributes:
        hidden: widths of the hidden layers.
        epochs: passes over the rows of the fit.
        batch_size: rows per step.
        learning_rate: of Adam.
        weight_decay: of Adam.
    """

    name: ClassVar[str] = "class network"
    version: ClassVar[int] = 1

    hidden: tuple[int, ...] = (100, 100)
    epochs: int = 300
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.0

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = [Problem("hidden", f"{width} is too small; expected widths >= 1") for width in self.hidden if width < 1]
        found += counts(self, "epochs", "batch_size")
        return [*found, *positive(self, "learning_rate"), *not_negative(self, "weight_decay")]

    def trained(self, inputs: NDArray[Any], targets: NDArray[Any], classes: int, seed: int) -> Module:
        """Return a trained network.

        Args:
            inputs: ``[rows, members, classes]``, class probabilities.
            targets: ``[rows]``, the right classes; rows without one (``NO_VOTE``) are not trained on.
            classes: number of classes.
            seed: of the initialization and of the order of the rows.
        """
        import torch
        from torch.nn import Linear, Sequential, Sigmoid
        from torch.nn.functional import cross_entropy

        rows = torch.from_numpy(inputs).flatten(1)[targets != NO_VOTE]
        right = torch.from_numpy(targets[targets != NO_VOTE])
        widths = [rows.shape[1], *self.hidden]
        chance = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = [
                layer
                for before, after in zip(widths, self.hidden, strict=False)
                for layer in (Linear(before, after), Sigmoid())
            ]
            model = Sequential(*layers, Linear(widths[-1], classes))
        optimizer = torch.optim.Adam(model.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        for _ in range(self.epochs):
            order = torch.randperm(len(rows), generator=chance)
            for start in range(0, len(rows), self.batch_size):
                batch = order[start : start + self.batch_size]
                optimizer.zero_grad()
                loss = cross_entropy(model(rows[batch]), right[batch])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return model


def probabilities(votes: Votes, members: Sequence[int]) -> NDArray[Any]:
    """Return the members' class probabilities, ``[rows, members, classes]``: softmax of their log-likelihoods."""
    import numpy as np

    assert votes.likelihoods is not None
    logits = votes.likelihoods[:, list(members)]
    weights = np.exp(logits - logits.max(axis=2, keepdims=True))
    found: NDArray[Any] = (weights / weights.sum(axis=2, keepdims=True)).astype("float32")
    return found


def _genetic(fitness: Fitness, members: int, largest: int | None, seed: int) -> Subset:
    """Return the best subset that PyGAD finds."""
    import numpy as np
    import pygad

    known: dict[tuple[int, ...], float] = {}

    def worth(_: Any, genes: NDArray[Any], __: Any) -> float:
        chosen = tuple(np.flatnonzero(genes).tolist())
        if not 2 <= len(chosen) <= (largest or members):
            return NEGLECTED
        if chosen not in known:
            known[chosen] = fitness.of(chosen).fitness
        return known[chosen]

    rng = Random(seed)
    # A population at random would have about half of the members in each subset, often more than are allowed.
    first = np.zeros((POPULATION, members), dtype=int)
    for row in first:
        row[rng.sample(range(members), rng.randint(2, largest or members))] = 1
    search = pygad.GA(
        num_generations=GENERATIONS,
        num_parents_mating=PARENTS,
        fitness_func=worth,
        initial_population=first,
        gene_type=int,
        gene_space=[0, 1],
        parent_selection_type="sss",
        crossover_type="two_points",
        mutation_type=None,
        stop_criteria=f"saturate_{STALE}",
        random_seed=seed,
        suppress_warnings=True,
    )
    search.run()
    best, _ = max(known.items(), key=lambda found: (round(found[1], 12), -len(found[0])))
    return fitness.of(best)
