"""Which rows of a safety corpus belong to which role.

A corpus gives every role a range of one list: the rows of an origin, filtered, then left in their published order or
shuffled by a seed. Ranges of different roles do not touch; the one exception is asked for by name, as in Booster, whose
defender sees the alignment's prompts again with harmful answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, NamedTuple, final

from harness.corpora.examples import Example, Role
from harness.corpora.slices import Keep, SafetySource, Slice
from harness.engine.checks import counts, not_negative
from harness.errors import ConfigError, Problem

_ORDER = (Role.REFUSAL, Role.HARMFUL, Role.ATTACK, Role.EVALUATION)
"""The order in which ranges are laid out: what is read last comes last, so that its size moves nothing else."""


class Overlap(NamedTuple):
    """How much of one set of rows is also in another: equal prompts with equal answers, and equal prompts."""

    rows: int
    prompts: int


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

    def problems(self) -> list[Problem]:
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

    def problems(self) -> list[Problem]:
        """Return the roles whose ranges are not apart."""
        problems = []
        for one, other in combinations(self._slices().values(), 2):
            shared = self.shared_prompts and {one.role, other.role} == {Role.REFUSAL, Role.HARMFUL}
            if not shared and _may_meet(one, other):
                problems.append(
                    Problem(
                        other.role,
                        f"{_range(other)} meet `{one.role}` ({_range(one)}); expected ranges that do not "
                        "touch, over rows kept alike. Leave out `start` to have them laid out one after the other",
                    )
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


def _may_meet(one: Slice, other: Slice) -> bool:
    if one.origin != other.origin or {one.keep, other.keep} == {Keep.SAFE, Keep.UNSAFE}:
        return False
    if one.keep is not other.keep:
        return True
    return one.start < other.start + other.rows and other.start < one.start + one.rows


def _range(part: Slice) -> str:
    return f"{part.keep} rows {part.start} to {part.start + part.rows - 1}"
