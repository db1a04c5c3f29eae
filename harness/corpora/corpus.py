"""Split of a safety corpus by role.

Every role has a range of one list: the rows of an origin, filtered, in their published order or shuffled with a seed.
Ranges of different roles are disjoint. The only exception is the setting ``shared_prompts``, as in Booster, whose
defender has the alignment's prompts with harmful answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, NamedTuple, final

from harness.corpora.examples import Example, Role
from harness.corpora.slices import Keep, SafetySource, Slice
from harness.engine.checks import counts, not_negative
from harness.errors import ConfigError, Problem

_ORDER = (Role.REFUSAL, Role.HARMFUL, Role.ATTACK, Role.EVALUATION, Role.BENIGN)
"""The default order of the ranges; a role's size does not move the ranges of the roles before it."""


class Overlap(NamedTuple):
    """Overlap of two sets of examples: number of equal examples, and number of equal prompts."""

    rows: int
    prompts: int


@final
@dataclass(frozen=True, kw_only=True)
class Span:
    """The range of a role.

    Attributes:
        rows: number of rows.
        start: index of the first row; None starts after the ranges of the preceding roles.
        keep: filter of the origin's rows, applied before indexing.
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
    """The safety rows of an experiment, by role. Stages take slices, so that a stage's key covers its own rows only.

    Attributes:
        origin: the default origin of all roles.
        refusal: the training data of alignment.
        attack: the attacker's pool.
        evaluation: the prompts on which the harmful score is measured.
        harmful: the defender's harmful data; None if there is none.
        shared_prompts: allow ``harmful`` to overlap ``refusal``; without ``harmful``, use the range of ``refusal``.
        shuffle: seed of the order of every origin; None keeps the published order.
        attack_origin: a separate origin for the attacker.
        evaluation_origin: a separate origin for the evaluation.
        benign: harmless prompts with helpful answers, for methods whose alignment keeps them; None if there are none.
        benign_origin: a separate origin for these.
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
    benign: Span | None = None
    benign_origin: SafetySource | None = None

    def problems(self) -> list[Problem]:
        """Return the roles whose ranges overlap."""
        problems = []
        for one, other in combinations(self._slices().values(), 2):
            shared = self.shared_prompts and {one.role, other.role} == {Role.REFUSAL, Role.HARMFUL}
            if not shared and _may_overlap(one, other):
                problems.append(
                    Problem(
                        other.role,
                        f"{_range(other)} overlap `{one.role}` ({_range(one)}); expected disjoint ranges with the "
                        "same `keep`. Omit `start` to place them one after the other",
                    )
                )
        return problems

    def slice(self, role: Role, rows: int | None = None) -> Slice:
        """Return a role's slice, or its first ``rows`` rows.

        Raises:
            ConfigError: the corpus has no rows for the role, or fewer than requested.
        """
        found = self._slices().get(role)
        if found is None:
            raise ConfigError(
                [f"`corpus.{role}`: the corpus has no rows for this role; expected a range. Set `corpus.{role}.rows`"]
            )
        if rows is None or rows == found.rows:
            return found
        if rows > found.rows:
            raise ConfigError(
                [f"`corpus.{role}.rows`: {found.rows} rows, but {rows} requested; expected at least as many"]
            )
        return Slice(
            role=role, origin=found.origin, start=found.start, rows=rows, keep=found.keep, shuffle=found.shuffle
        )

    def _slices(self) -> dict[Role, Slice]:
        origins = {
            Role.ATTACK: self.attack_origin,
            Role.EVALUATION: self.evaluation_origin,
            Role.BENIGN: self.benign_origin,
        }
        spans: dict[Role, Span | None] = {
            Role.REFUSAL: self.refusal,
            Role.HARMFUL: self.harmful or (self.refusal if self.shared_prompts else None),
            Role.ATTACK: self.attack,
            Role.EVALUATION: self.evaluation,
            Role.BENIGN: self.benign,
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
    """Return how many of the examples, and how many of their distinct prompts, occur among the others."""
    prompts = {(row.instruction, row.input) for row in rows} & {(other.instruction, other.input) for other in others}
    known = set(others)
    return Overlap(rows=sum(row in known for row in rows), prompts=len(prompts))


def _may_overlap(one: Slice, other: Slice) -> bool:
    if one.origin != other.origin or {one.keep, other.keep} == {Keep.SAFE, Keep.UNSAFE}:
        return False
    if one.keep is not other.keep:
        return True
    return one.start < other.start + other.rows and other.start < one.start + one.rows


def _range(part: Slice) -> str:
    return f"{part.keep} rows {part.start} to {part.start + part.rows - 1}"
