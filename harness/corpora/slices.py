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
    """Frozen settings of the origin of safety rows."""

    @property
    def name(self) -> str:
        """The kind of origin."""
        ...

    @property
    def version(self) -> int:
        """Incremented when the same settings give different rows."""
        ...

    def __hash__(self) -> int:
        """Hashable, so that the rows are read once and cached."""
        ...

    def safety_rows(self) -> list[SafetyRow]:
        """Return all rows in their published order."""
        ...

    def preflight(self) -> list[Problem]:
        """Return why the rows cannot be read."""
        ...


@runtime_checkable
class OneAnswer(Protocol):
    """Optional: a source none of whose rows has both a refusal and a harmful answer."""

    one_answer: ClassVar[bool]


@runtime_checkable
class CarriesThoughts(Protocol):
    """Optional: a source whose rows have thoughts, or may have them."""

    @property
    def carries_thoughts(self) -> bool:
        """Whether they have."""
        ...


class Keep(StrEnum):
    """Filter of an origin's rows."""

    ALL = "all"
    UNSAFE = "unsafe"
    SAFE = "safe"


@final
@dataclass(frozen=True, kw_only=True)
class Slice:
    """The rows of one role.

    Attributes:
        role: the role; determines which answer ``examples`` returns.
        origin: the source of the rows.
        start: index of the first row, counted from 0 after filtering and shuffling.
        rows: number of rows.
        keep: filter of the origin's rows.
        shuffle: seed of the order; None keeps the published order.
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
        """Return why the rows are not available; rows that are on this machine are read and counted.

        Args:
            paired: whether the refusals of the rows' prompts are needed too.
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
            DataError: they cannot be read, or there are fewer than requested.
        """
        rows = _ordered(self.origin, self.keep, self.shuffle)
        end = self.start + self.rows
        if end > len(rows):
            kept = "" if self.keep is Keep.ALL else f" {self.keep}"
            raise DataError(
                f"`corpus.{self.role}`: rows {self.start} to {end - 1} of `{self.origin.name}` requested, but it "
                f"has {len(rows)}{kept} rows; expected an end of at most {len(rows)}. Lower `corpus.{self.role}.rows`"
            )
        return list(rows[self.start : end])

    def examples(self) -> list[Example]:
        """Return the examples with the answer of their role: a refusal, a helpful answer (``benign``) or a harmful one.

        A safe answer has the row's thought before it, if there is one.
        The ``output`` of an evaluation example is the harmful answer if the corpus has one; models never see it.

        Raises:
            DataError: the rows cannot be read, or one has no such answer.
        """
        rows = self.safety_rows()
        kind = {Role.REFUSAL: "refusal", Role.BENIGN: "benign"}.get(self.role, "harmful")
        safe = kind != "harmful"
        examples = [Example(row.prompt, getattr(row, kind), thought=row.thought if safe else "") for row in rows]
        empty = sum(not example.output for example in examples)
        if empty and self.role is not Role.EVALUATION:
            answer = kind if kind == "refusal" else f"{kind} answer"
            raise DataError(
                f"`corpus.{self.role}`: {empty} of {len(rows)} rows of `{self.origin.name}` have no {answer}; expected "
                f"one in every row. Change `corpus.{self.role}.keep`, or choose another origin"
            )
        return examples

    def refusals(self) -> list[Example]:
        """Return the refusals of the rows' prompts, in the same order.

        Raises:
            DataError: the rows cannot be read, or one has no refusal.
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


class Readable(Protocol):
    """Settings that give examples."""

    def examples(self) -> list[Example]:
        """Return the examples, in order."""
        ...


def examples_of(*slices: Readable | None) -> list[Example]:
    """Return the examples of all slices that are not None.

    Raises:
        DataError: they cannot be read.
    """
    return [example for part in slices if part for example in part.examples()]
