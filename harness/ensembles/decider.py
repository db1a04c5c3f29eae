"""MARL-Focal's decider: a policy that chooses which members to ask, trained by their vote's success.

Tekin et al., Multi-Agent Reinforcement Learning with Focal Diversity Optimization (arXiv 2502.04492). A network has one
Bernoulli head per member; the pool that it samples votes; the reward is 1 for a good answer, -1 - size_weight * |pool|
/ N for a failure, and -1 for an empty pool. Returns are discounted inside blocks of consecutive rows and standardized,
and the step is REINFORCE (the authors' clipped ratio is taken against the same probabilities, so its clip never acts).

Deviations, with ``state: votes``: the authors' state has no feature of the question, so their best policy is one
constant pool. Here it is a contextual bandit over what a row shows without its label: the votes, how many agree with
each, and the length of the prompt; rows are independent, so ``discount`` is 0. The decider is trained on the rows of
the fit only and then answers greedily: no sampling, no update, no feedback from the rows that it answers, all of which
the published evaluation has. With ``state: published`` the state is the authors' (the previous pool, the weighted sum
of its focal diversity and score over a window of answered rows, and its size), and so is the order of the stream; their
remaining statistics have weight 0 by default and are left out, and the window ends with the rows of the fit. The second
agent, which answers in place of a vote, is left out. Ties go to the best member instead of the lowest class.

Fidelity: rewards, returns and the gradient are tested against values computed by hand; no numbers of the authors are
reproduced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, final

from harness.engine.checks import counts, not_negative, positive, shares
from harness.errors import Problem
from harness.mechanisms.focal_diversity import failures, focal_diversity
from harness.mechanisms.plurality import Ballot
from harness.protocols import NO_VOTE, Choice, Votes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.nn import Module

EMPTY = -1.0
"""Reward of an empty pool: more than that of any pool that fails."""
TOO_SMALL = -99.0
"""Statistic of a pool of fewer than two members."""
SHARE = 0.5
"""Weight of the focal diversity and of the score in the statistic of a pool; the authors' default."""


@final
@dataclass(frozen=True, kw_only=True)
class Decider:
    """Settings of the decider.

    Attributes:
        state: what the policy sees: ``votes`` of the row, or the ``published`` state, which does not depend on it.
        size_weight: how much a failure of a larger pool costs more.
        discount: of later rewards in a block.
        passes: passes over the rows of the fit.
        block: rows per update.
        hidden: width of the network.
        learning_rate: of Adam.
        window: rows over which the statistic of a pool is computed, with the published state.
    """

    name: ClassVar[str] = "decider"
    version: ClassVar[int] = 1

    state: Literal["votes", "published"] = "votes"
    size_weight: float = 1.0
    discount: float = 0.0
    passes: int = 60
    block: int = 100
    hidden: int = 128
    learning_rate: float = 1e-3
    window: int = 500

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return [
            *not_negative(self, "size_weight"),
            *shares(self, "discount"),
            *counts(self, "passes", "block", "hidden", "window"),
            *positive(self, "learning_rate"),
        ]

    def fit(
        self,
        votes: Votes,
        quality: NDArray[Any],
        targets: NDArray[Any] | None,  # noqa: ARG002 - rewards need no classes
        *,
        rng: Random,
    ) -> FittedDecider:
        """Train the policy."""
        import numpy as np
        import torch

        scores = quality.mean(axis=0)
        view: View = BanditView(votes) if self.state == "votes" else StreamView(votes, quality, scores, self.window)
        network = _network(view.width, self.hidden, len(scores), rng.getrandbits(63))
        optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        chance = torch.Generator().manual_seed(rng.getrandbits(63))
        rows, earned = list(range(len(quality))), 0.0

        def sampled(logits: Tensor) -> Tensor:
            return torch.bernoulli(torch.sigmoid(logits.detach()), generator=chance)

        for _ in range(self.passes):
            if self.state == "votes":
                rng.shuffle(rows)
            earned = 0.0
            for start in range(0, len(rows), self.block):
                block = np.array(rows[start : start + self.block])
                asked = votes.rows(block)
                logits, pool = view.decided(network, asked, sampled, upto=start)
                reward = rewards(asked, quality[block], scores, pool.numpy() > 0, self.size_weight)
                advantage = torch.from_numpy(standardized_returns(reward, self.discount)).float()
                loss = -(log_probability(logits, pool) * advantage).mean()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                earned += float(reward.sum())
        return FittedDecider(network, view, scores, earned / len(rows))


@final
@dataclass(frozen=True)
class FittedDecider:
    """A trained policy.

    Attributes:
        network: from what the policy sees to a logit for each member.
        view: computes what it sees.
        scores: mean quality of each member, which decides ties.
        reward: mean reward of a row in the last pass.
    """

    network: Module
    view: View
    scores: NDArray[Any]
    reward: float

    @property
    def facts(self) -> Mapping[str, object]:
        """The mean reward of a row in the last pass over the rows of the fit."""
        return {"reward": self.reward}

    def choose(self, votes: Votes) -> Choice:
        """Ask the members that the policy asks with a probability above one half, or else the most probable one."""
        import torch

        with torch.no_grad():
            _, pool = self.view.decided(self.network, votes, greedy, upto=None)
        asked = pool.numpy() > 0
        return Choice(Ballot(votes.classes, self.scores).winners(asked), asked)


class View(Protocol):
    """What a policy sees of the rows."""

    @property
    def width(self) -> int:
        """The number of inputs of the network."""
        ...

    def decided(
        self, network: Module, votes: Votes, act: Callable[[Tensor], Tensor], *, upto: int | None
    ) -> tuple[Tensor, Tensor]:
        """Return the policy's logits and the pools that it chose, both ``[rows, members]``.

        Args:
            network: the policy.
            votes: the rows, in the order in which they are answered.
            act: chooses pools by logits.
            upto: number of rows of the fit that were answered before in this pass; None after the fit.
        """
        ...


@final
class BanditView:
    """The votes of a row, how many other members agree with each, and the length of the prompt.

    Args:
        votes: the rows of the fit, which scale the lengths.
    """

    def __init__(self, votes: Votes) -> None:
        """Measure the lengths."""
        self._mean, self._spread = float(votes.lengths.mean()), float(votes.lengths.std()) or 1.0
        self.width = self.features(votes).shape[1]

    def features(self, votes: Votes) -> NDArray[Any]:
        """Return ``[rows, features]``; votes themselves are features only if classes mean the same in every row."""
        import numpy as np

        classes = votes.classes
        voted = classes != NO_VOTE
        equal = (classes[:, :, None] == classes[:, None, :]) & voted[:, :, None]
        agreement = (equal.sum(axis=2) - voted) / max(1, classes.shape[1] - 1)
        parts = [agreement, voted, ((votes.lengths - self._mean) / self._spread)[:, None]]
        parts += [classes == label for label in range(votes.class_count or 0)]
        return np.concatenate(parts, axis=1).astype("float32")

    def decided(
        self,
        network: Module,
        votes: Votes,
        act: Callable[[Tensor], Tensor],
        *,
        upto: int | None,  # noqa: ARG002 - rows are independent
    ) -> tuple[Tensor, Tensor]:
        """Decide every row by itself."""
        import torch

        logits = network(torch.from_numpy(self.features(votes)))
        return logits, act(logits)


@final
class StreamView:
    """The published state: the previous pool, its statistic over the last answered rows, and its size.

    The statistic is ``0.5 * focal diversity + 0.5 * score of the vote``, or ``TOO_SMALL`` for a pool of fewer than two.

    Args:
        votes: the rows of the fit.
        quality: their grades.
        scores: mean quality of each member.
        window: number of answered rows that the statistic is computed over.
    """

    def __init__(self, votes: Votes, quality: NDArray[Any], scores: NDArray[Any], window: int) -> None:
        """Start with a pool of all members."""
        import numpy as np

        self._votes, self._quality, self._scores, self._window = votes, quality, scores, window
        self._pool = np.ones(len(scores), dtype="float32")
        self.width = len(scores) + 2

    def decided(
        self, network: Module, votes: Votes, act: Callable[[Tensor], Tensor], *, upto: int | None
    ) -> tuple[Tensor, Tensor]:
        """Decide one row after another. Rows that are answered after the fit do not change the window."""
        import torch

        decided = []
        for row in range(len(votes.classes)):
            answered = len(self._quality) if upto is None else upto + row
            logits = network(torch.from_numpy(self._state(answered)))
            pool = act(logits[None])[0]
            self._pool = pool.numpy()
            decided.append((logits, pool))
        return torch.stack([logits for logits, _ in decided]), torch.stack([pool for _, pool in decided])

    def _state(self, answered: int) -> NDArray[Any]:
        import numpy as np

        size = float(self._pool.sum())
        return np.array([*self._pool, self._statistic(answered), size], dtype="float32")

    def _statistic(self, answered: int) -> float:
        import numpy as np

        members = np.flatnonzero(self._pool)
        if len(members) < 2:
            return TOO_SMALL
        seen = np.arange(max(0, answered - self._window), answered)
        if not len(seen):
            return 0.0
        ballot = Ballot(self._votes.classes[np.ix_(seen, members)], self._scores[members])
        quality = self._quality[np.ix_(seen, members)]
        score = quality[np.arange(len(seen)), ballot.winners(np.ones(len(members)))].mean()
        return SHARE * focal_diversity(failures(quality)) + SHARE * float(score)


def rewards(
    votes: Votes, quality: NDArray[Any], scores: NDArray[Any], pools: NDArray[Any], size_weight: float
) -> NDArray[Any]:
    """Return the reward of each row: 1, or ``-1 - size_weight * |pool| / N`` for a failure, or -1 for an empty pool.

    Args:
        votes: the rows.
        quality: ``[rows, members]``, their grades.
        scores: ``[members]``, which decide ties.
        pools: ``[rows, members]``, the members that vote.
        size_weight: weight of the pool's size.
    """
    import numpy as np

    sizes = pools.sum(axis=1)
    taken = Ballot(votes.classes, scores).winners(pools)
    failed = failures(quality[np.arange(len(quality)), taken])
    found = np.where(failed, -1 - size_weight * sizes / pools.shape[1], 1.0)
    return np.where(sizes > 0, found, EMPTY)


def standardized_returns(reward: NDArray[Any], discount: float) -> NDArray[Any]:
    """Return the discounted sums of the rewards from each row of a block on, standardized over the block.

    As in the authors' code, with the unbiased standard deviation plus 1e-9; 0 for a block of one row.
    """
    import numpy as np

    returns = np.zeros(len(reward))
    following = 0.0
    for row in range(len(reward) - 1, -1, -1):
        following = returns[row] = reward[row] + discount * following
    if len(returns) < 2:
        return np.zeros(len(returns))
    standardized: NDArray[Any] = (returns - returns.mean()) / (returns.std(ddof=1) + 1e-9)
    return standardized


def log_probability(logits: Tensor, pools: Tensor) -> Tensor:
    """Return the log probability of each row's pool, ``[rows]``: one independent Bernoulli variable per member."""
    from torch.nn.functional import logsigmoid

    return (pools * logsigmoid(logits) + (1 - pools) * logsigmoid(-logits)).sum(dim=1)


def greedy(logits: Tensor) -> Tensor:
    """Return the pools of the members with a probability above one half; of none, the most probable member alone."""
    from torch.nn.functional import one_hot

    pools = (logits > 0).float()
    alone = one_hot(logits.argmax(dim=1), logits.shape[1]).float()
    return pools + alone * (pools.sum(dim=1, keepdim=True) == 0)


def _network(inputs: int, hidden: int, members: int, seed: int) -> Module:
    import torch
    from torch.nn import Linear, ReLU, Sequential

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Sequential(Linear(inputs, hidden), ReLU(), Linear(hidden, members))
