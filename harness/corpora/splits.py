"""Which rows of a safety corpus belong to which role.

A corpus gives every role a range of one list: the rows of an origin, filtered, then left in their published order or
shuffled by a seed. Ranges of different roles do not touch; the one exception is asked for by name, as in Booster, whose
defender sees the alignment's prompts again with harmful answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from itertools import combinations
from typing import ClassVar, NamedTuple, Protocol, final, runtime_checkable

from harness.corpora.record import Example, Role, SafetyRow
from harness.corpora.sources import sources_in
from harness.engine.seeding import generator
from harness.errors import ConfigError, DataError
from harness.ranges import counts, not_negative

_ORDER = (Role.REFUSAL, Role.HARMFUL, Role.ATTACK, Role.EVALUATION)
"""The order in which ranges are laid out: what is read last comes last, so that its size moves nothing else."""


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

    def preflight(self) -> list[str]:
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


class Overlap(NamedTuple):
    """How much of one set of rows is also in another: equal prompts with equal answers, and equal prompts."""

    rows: int
    prompts: int


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

    def preflight(self, *, paired: bool = False) -> list[str]:
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
            return [str(error)]
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


@final
@dataclass(frozen=True, kw_only=True)
class Span:
    """How many rows a role has.

    Attributes:
        rows: how many.
        start: the first; None lays the range after those of the roles before it.
        keep: which rows of the origin are counted.
    """

    name: ClassVar[str] = "span"
    version: ClassVar[int] = 1

    rows: int
    start: int | None = None
    keep: Keep = Keep.UNSAFE

    def problems(self) -> list[str]:
        """Return the range errors of the settings."""
        return [*counts(self, "rows"), *not_negative(self, "start")]


@final
@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Which safety rows an experiment uses, by role. Stages take slices, so that each hashes its own rows only.

    Attributes:
        origin: the corpus of every role that has none of its own.
        refusal: what alignment trains on.
        attack: the attacker's rows.
        evaluation: the rows whose prompts the harmful score is measured on.
        harmful: the defender's harmful rows; None if there are none.
        shared_prompts: the defender's harmful rows may be the refusals' rows, and are if ``harmful`` is not given.
        shuffle: the seed of the order of every origin; None keeps the published one.
        attack_origin: a corpus of the attacker's own.
        evaluation_origin: a corpus of the evaluation's own.
    """

    name: ClassVar[str] = "corpus"
    version: ClassVar[int] = 1

    origin: SafetySource
    refusal: Span
    attack: Span
    evaluation: Span
    harmful: Span | None = None
    shared_prompts: bool = False
    shuffle: int | None = None
    attack_origin: SafetySource | None = None
    evaluation_origin: SafetySource | None = None

    def problems(self) -> list[str]:
        """Return the roles whose ranges are not apart."""
        problems = []
        for one, other in combinations(self._slices().values(), 2):
            shared = self.shared_prompts and {one.role, other.role} == {Role.REFUSAL, Role.HARMFUL}
            if not shared and _may_meet(one, other):
                problems.append(
                    f"`{other.role}`: {_range(other)} meet `{one.role}` ({_range(one)}); expected ranges that do not "
                    "touch, over rows kept alike. Leave out `start` to have them laid out one after the other"
                )
        return problems

    def slice(self, role: Role, rows: int | None = None) -> Slice:
        """Return a role's slice, or its first ``rows`` rows.

        Raises:
            ConfigError: the corpus has no rows for the role, or fewer than asked for.
        """
        found = self._slices().get(role)
        if found is None:
            raise ConfigError(
                [f"`corpus.{role}`: the corpus has no such rows; expected a range. Set `corpus.{role}.rows`"]
            )
        if rows is None or rows == found.rows:
            return found
        if rows > found.rows:
            raise ConfigError(
                [f"`corpus.{role}.rows`: {found.rows} rows, but {rows} are asked for; expected at least as many"]
            )
        return Slice(
            role=role, origin=found.origin, start=found.start, rows=rows, keep=found.keep, shuffle=found.shuffle
        )

    def _slices(self) -> dict[Role, Slice]:
        origins = {Role.ATTACK: self.attack_origin, Role.EVALUATION: self.evaluation_origin}
        spans: dict[Role, Span | None] = {
            Role.REFUSAL: self.refusal,
            Role.HARMFUL: self.harmful or (self.refusal if self.shared_prompts else None),
            Role.ATTACK: self.attack,
            Role.EVALUATION: self.evaluation,
        }
        ends: dict[tuple[SafetySource, Keep], int] = {}
        slices: dict[Role, Slice] = {}
        for role in _ORDER:
            span = spans[role]
            if span is None:
                continue
            origin = origins.get(role) or self.origin
            start = span.start if span.start is not None else ends.get((origin, span.keep), 0)
            if role is Role.HARMFUL and self.shared_prompts and span.start is None:
                start = slices[Role.REFUSAL].start
            ends[origin, span.keep] = max(ends.get((origin, span.keep), 0), start + span.rows)
            slices[role] = Slice(
                role=role, origin=origin, start=start, rows=span.rows, keep=span.keep, shuffle=self.shuffle
            )
        return slices


def overlaps(rows: Sequence[Example], others: Sequence[Example]) -> Overlap:
    """Return how many of the rows, and how many distinct prompts of theirs, occur among the others."""
    prompts = {(row.instruction, row.input) for row in rows} & {(other.instruction, other.input) for other in others}
    known = set(others)
    return Overlap(rows=sum(row in known for row in rows), prompts=len(prompts))


@lru_cache(maxsize=4)
def _rows_of(origin: SafetySource) -> tuple[SafetyRow, ...]:
    return tuple(origin.safety_rows())


def _ordered(origin: SafetySource, keep: Keep, shuffle: int | None) -> list[SafetyRow]:
    rows = [row for row in _rows_of(origin) if keep is Keep.ALL or row.unsafe is (keep is Keep.UNSAFE)]
    if shuffle is not None:
        generator(shuffle, "corpus", "order").shuffle(rows)
    return rows


def _may_meet(one: Slice, other: Slice) -> bool:
    if one.origin != other.origin or {one.keep, other.keep} == {Keep.SAFE, Keep.UNSAFE}:
        return False
    if one.keep is not other.keep:
        return True
    return one.start < other.start + other.rows and other.start < one.start + one.rows


def _range(part: Slice) -> str:
    return f"{part.keep} rows {part.start} to {part.start + part.rows - 1}"
