"""The user's rows: how many are harmful, which ones, and in which order.

``exact`` counts with rational numbers. ``booster`` reproduces the published code (``Booster:utils.py``): shares are cut
off in floating point and the harmful slice is strict at both ends, so that 1,000 rows at 0.1 are 99 + 900; its rows are
the first of each file, harmful ones before benign ones.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import floor
from typing import Literal, NamedTuple

from harness.corpora.examples import Example
from harness.engine.seeding import generator
from harness.errors import DataError, Problem

Compat = Literal["exact", "booster"]
Craft = Callable[[list[Example], int], list[Example]]
"""Makes exactly so many harmful rows from the attacker's pool."""


class Counts(NamedTuple):
    """Rows of a mixture by kind."""

    harmful: int
    benign: int


class Mixture(NamedTuple):
    """The rows in training order, which of them are harmful, and the realised counts."""

    examples: list[Example]
    harmful: list[bool]
    counts: Counts


def counts(rows: int, ratio: float, compat: Compat) -> Counts:
    """Return how many rows of each kind a mixture has.

    Args:
        rows: rows asked for.
        ratio: the share of harmful ones, 0 to 1; taken as the decimal number it is written as.
        compat: ``exact``, or ``booster`` for the published counts, which may fall short of ``rows``.
    """
    if compat == "booster":
        return Counts(harmful=max(int(ratio * float(rows)) - 1, 0), benign=int((1 - ratio) * float(rows)))
    harmful = floor(Fraction(str(ratio)) * rows + Fraction(1, 2))
    return Counts(harmful=harmful, benign=rows - harmful)


def shortage(wanted: Counts, *, task_rows: int, pool_rows: int, compat: Compat) -> list[Problem]:
    """Return what a task and an attacker's pool lack for a mixture; nothing if they suffice."""
    needed = wanted.harmful + (1 if compat == "booster" and wanted.harmful else 0)
    problems = []
    if wanted.benign > task_rows:
        problems.append(
            Problem(
                "finetune.rows",
                f"{wanted.benign} benign rows are asked for, but the task has {task_rows}; lower `finetune.rows`",
            )
        )
    if needed > pool_rows:
        problems.append(
            Problem(
                "attack.ratio",
                f"{needed} harmful rows are asked for, but the attacker has {pool_rows}; lower `attack.ratio` or "
                "`finetune.rows`, or raise `corpus.attack.rows`",
            )
        )
    return problems


def mix(
    *,
    task: Sequence[Example],
    harmful: Sequence[Example],
    craft: Craft,
    rows: int,
    ratio: float,
    compat: Compat,
    seed: int,
) -> Mixture:
    """Return the rows that a user fine-tunes on.

    In ``exact`` the task's rows and the attacker's pool are each put into one seeded order that does not depend on the
    ratio, and a mixture takes the first of both: the harmful rows at a larger ratio contain those at a smaller one.

    Args:
        task: the user's own rows in their published order.
        harmful: the attacker's pool in its published order.
        craft: makes harmful rows from the pool in the order given to it.
        rows: rows asked for.
        ratio: the share of harmful ones.
        compat: ``exact`` or ``booster``.
        seed: the root seed.

    Raises:
        DataError: the task or the pool has too few rows.
    """
    wanted = counts(rows, ratio, compat)
    problems = shortage(wanted, task_rows=len(task), pool_rows=len(harmful), compat=compat)
    if problems:
        raise DataError("\n".join(map(str, problems)))
    if compat == "booster":
        bad, good = craft(list(harmful[1:]), wanted.harmful), list(task[: wanted.benign])
    else:
        bad = craft(_shuffled(harmful, seed, "harmful"), wanted.harmful)
        good = _shuffled(task, seed, "benign")[: wanted.benign]
    assert len(bad) == wanted.harmful, "an attack makes as many rows as it is asked for"
    marked = [(example, True) for example in bad] + [(example, False) for example in good]
    if compat == "exact":
        generator(seed, "mixture", "order").shuffle(marked)
    return Mixture([example for example, _ in marked], [flag for _, flag in marked], wanted)


def _shuffled(examples: Sequence[Example], seed: int, kind: str) -> list[Example]:
    order = list(examples)
    generator(seed, "mixture", kind).shuffle(order)
    return order
