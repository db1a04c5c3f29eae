"""Interface of ensemble methods, which choose among the stored answers of several models, and of what they read."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from harness.errors import Problem
from harness.protocols.learner import Named

if TYPE_CHECKING:
    from numpy.typing import NDArray

NO_VOTE = -1
"""The vote of an answer that belongs to no class."""


class Votes(NamedTuple):
    """What an ensemble may read of the rows that it answers; nothing here depends on a grade or a reference.

    Attributes:
        classes: ``[rows, members]``, the class of each answer, ``NO_VOTE`` for none.
        class_count: number of classes; None if classes are only comparable within a row (open answers).
        lengths: ``[rows]``, number of words of each prompt.
        likelihoods: ``[rows, members, classes]``, log-likelihood of each class in nats; None if not computed.
    """

    classes: NDArray[Any]
    class_count: int | None
    lengths: NDArray[Any]
    likelihoods: NDArray[Any] | None = None

    def rows(self, chosen: NDArray[Any]) -> Votes:
        """Return these rows, by index or mask."""
        likelihoods = None if self.likelihoods is None else self.likelihoods[chosen]
        return self._replace(classes=self.classes[chosen], lengths=self.lengths[chosen], likelihoods=likelihoods)


class Choice(NamedTuple):
    """What an ensemble answers.

    Attributes:
        members: ``[rows]``, the member whose answer is taken.
        pools: ``[rows, members]``, the members that were asked.
    """

    members: NDArray[Any]
    pools: NDArray[Any]


class FittedEnsemble(Protocol):
    """An ensemble method after it was fitted to graded rows."""

    @property
    def facts(self) -> Mapping[str, object]:
        """What was chosen, for the manifest: JSON values only."""
        ...

    def choose(self, votes: Votes) -> Choice:
        """Choose an answer for each row."""
        ...


class EnsembleMethod(Named, Protocol):
    """Frozen settings of an ensemble method."""

    def fit(self, votes: Votes, quality: NDArray[Any], targets: NDArray[Any] | None, *, rng: Random) -> FittedEnsemble:
        """Fit to graded rows.

        Args:
            votes: the members' votes.
            quality: ``[rows, members]``, 1 for a good answer, 0 for a failure, with graded judges also between.
            targets: ``[rows]``, the right class, ``NO_VOTE`` if it is none of the classes; None for requests and for
                open answers.
            rng: random generator of the fit.
        """
        ...


@runtime_checkable
class CountsMembers(Protocol):
    """Optional: a method that does not work with any number of members."""

    def unsuitable(self, members: int) -> list[Problem]:
        """Return why it cannot be used with this number of members."""
        ...


@runtime_checkable
class ReadsLikelihoods(Protocol):
    """Optional: a method that may need more than votes."""

    @property
    def reads_likelihoods(self) -> bool:
        """Whether it needs the log-likelihoods of the classes of the user's task."""
        ...


@runtime_checkable
class HasVotes(Protocol):
    """Optional: a task whose answers can be counted as votes."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes of all answers; empty if answers are open, such as numbers."""
        ...

    def vote(self, answer: str) -> str | None:
        """Return the class of an answer, independent of the reference; equal answers are equal texts; None for none."""
        ...
