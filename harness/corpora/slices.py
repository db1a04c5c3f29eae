"""Slices of a corpus: examples of one role, by position."""

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from typing import ClassVar, Protocol, final, runtime_checkable

from harness.corpora.examples import Example, Role, SafetyRow
from harness.corpora.sources import sources_in
from harness.engine.seeding import generator
from harness.errors import DataError, Problem


class SafetySource(Protocol):
    """Frozen settings of where safety rows come from."""

    @property
    def name(self) -> str:
        """The kind of corpus."""
        ...

    @property
    def version(self) -> int:
        """Bumped when the rows change."""
        ...

    def __hash__(self) -> int:
        """Settings are frozen, so their rows are read once."""
        ...

    def safety_rows(self) -> list[SafetyRow]:
        """Return all rows in their published order."""
        ...

    def preflight(self) -> list[Problem]:
        """Return why the rows could not be read."""
        ...


@runtime_checkable
class OneAnswer(Protocol):
    """What a source may have besides: no row of it has both a refusal and a harmful answer."""

    one_answer: ClassVar[bool]


class Keep(StrEnum):
    """Which rows of an origin are counted at all."""

    ALL = "all"
    UNSAFE = "unsafe"
    SAFE = "safe"


@final
@dataclass(frozen=True, kw_only=True)
class Slice:
    """The rows of one role.

    Attributes:
        role: what the rows are for; decides which answer ``examples`` gives.
        origin: the corpus.
        start: the first row, counted from 0 after filtering and shuffling.
        rows: how many.
        keep: which rows of the origin are counted.
        shuffle: the seed of the order; None keeps the published one.
    """

    name: ClassVar[str] = "slice"
    version: ClassVar[int] = 1

    role: Role
    origin: SafetySource
    start: int
    rows: int
    keep: Keep = Keep.UNSAFE
    shuffle: int | None = None

    def preflight(self, *, paired: bool = False) -> list[Problem]:
        """Return why the rows could not be had; rows that are on this machine are read and counted.

        Args:
            paired: the refusals of the rows' prompts are needed too.
        """
        problems = self.origin.preflight()
        if problems or not all(source.at_hand() for source in sources_in(self.origin)):
            return problems
        try:
            self.examples()
            if paired:
                self.refusals()
        except DataError as error:
            return [Problem("", str(error))]
        return []

    def safety_rows(self) -> list[SafetyRow]:
        """Return the role's rows.

        Raises:
            DataError: they cannot be read, or there are fewer than asked for.
        """
        rows = _ordered(self.origin, self.keep, self.shuffle)
        end = self.start + self.rows
        if end > len(rows):
            kept = "" if self.keep is Keep.ALL else f" {self.keep}"
            raise DataError(
                f"`corpus.{self.role}`: rows {self.start} to {end - 1} of `{self.origin.name}` are asked for, but it "
                f"has {len(rows)}{kept} rows; expected an end of at most {len(rows)}. Lower `corpus.{self.role}.rows`"
            )
        return list(rows[self.start : end])

    def examples(self) -> list[Example]:
        """Return the rows with the answer of their role: the refusal for ``refusal``, otherwise the harmful one.

        An evaluation example's ``output`` is the harmful answer if the corpus has one; no model is given it.

        Raises:
            DataError: the rows cannot be had, or one has no such answer.
        """
        rows = self.safety_rows()
        examples = [Example(row.prompt, row.refusal if self.role is Role.REFUSAL else row.harmful) for row in rows]
        empty = sum(not example.output for example in examples)
        if empty and self.role is not Role.EVALUATION:
            answer = "refusal" if self.role is Role.REFUSAL else "harmful answer"
            raise DataError(
                f"`corpus.{self.role}`: {empty} of {len(rows)} rows of `{self.origin.name}` have no {answer}; expected "
                f"one in each. Change `corpus.{self.role}.keep`, or choose another origin"
            )
        return examples

    def refusals(self) -> list[Example]:
        """Return the refusals of the rows' prompts, row by row.

        Raises:
            DataError: the rows cannot be had, or one has no refusal.
        """
        return replace(self, role=Role.REFUSAL).examples()


@lru_cache(maxsize=4)
def _rows_of(origin: SafetySource) -> tuple[SafetyRow, ...]:
    return tuple(origin.safety_rows())


def _ordered(origin: SafetySource, keep: Keep, shuffle: int | None) -> list[SafetyRow]:
    rows = [row for row in _rows_of(origin) if keep is Keep.ALL or row.unsafe is (keep is Keep.UNSAFE)]
    if shuffle is not None:
        generator(shuffle, "corpus", "order").shuffle(rows)
    return rows


def drawn_from(*slices: Slice | None) -> list[Example]:
    """Return the rows of those slices that there are.

    Raises:
        DataError: they cannot be had.
    """
    return [example for part in slices if part for example in part.examples()]
