"""The user's mixture of benign and harmful examples: counts, selection and order.

``exact`` computes counts with rational numbers. ``booster`` reproduces the published code (``Booster:utils.py``):
counts are truncated in floating point and the harmful slice excludes both ends, so that 1,000 examples at 0.1 are 99 +
900; the examples are the first of each file, harmful ones before benign ones.
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
"""Crafts exactly the given number of harmful examples from the attacker's pool."""


class Counts(NamedTuple):
    """Number of examples of a mixture by kind."""

    harmful: int
    benign: int


class Mixture(NamedTuple):
    """The examples in stored order, whether each is harmful, and the actual counts."""

    examples: list[Example]
    harmful: list[bool]
    counts: Counts


def counts(rows: int, ratio: float, compat: Compat) -> Counts:
    """Return the number of examples of each kind in a mixture.

    Args:
        rows: the requested number of examples.
        ratio: the poison ratio, 0 to 1, interpreted as the decimal number it is written as.
        compat: ``exact``, or ``booster`` for the published counts, which may add up to less than ``rows``.
    """
    if compat == "booster":
        return Counts(harmful=max(int(ratio * float(rows)) - 1, 0), benign=int((1 - ratio) * float(rows)))
    harmful = floor(Fraction(str(ratio)) * rows + Fraction(1, 2))
    return Counts(harmful=harmful, benign=rows - harmful)


def shortage(wanted: Counts, *, task_rows: int, pool_rows: int, compat: Compat) -> list[Problem]:
    """Return why a task and an attacker's pool are too small for a mixture; empty if they are not."""
    needed = wanted.harmful + (1 if compat == "booster" and wanted.harmful else 0)
    problems = []
    if wanted.benign > task_rows:
        problems.append(
            Problem(
                "finetune.rows",
                f"{wanted.benign} benign rows requested, but the task has {task_rows}; lower `finetune.rows`",
            )
        )
    if needed > pool_rows:
        problems.append(
            Problem(
                "attack.ratio",
                f"{needed} harmful rows requested, but the attacker has {pool_rows}; lower `attack.ratio` or "
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
    """Return the mixture that a user fine-tunes on.

    With ``exact``, the task's examples and the attacker's pool are each shuffled with a seed that does not depend on
    the ratio, and a mixture takes the first of both: harmful examples at a larger ratio include those at a smaller one.

    Args:
        task: the user's benign examples, in their published order.
        harmful: the attacker's pool, in its published order.
        craft: crafts harmful examples from the ordered pool.
        rows: the requested number of examples.
        ratio: the poison ratio, 0 to 1.
        compat: ``exact`` or ``booster``.
        seed: the root seed.

    Raises:
        DataError: the task or the pool has too few examples.
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
    assert len(bad) == wanted.harmful, "an attack crafts exactly the requested number of examples"
    marked = [(example, True) for example in bad] + [(example, False) for example in good]
    if compat == "exact":
        generator(seed, "mixture", "order").shuffle(marked)
    return Mixture([example for example, _ in marked], [flag for _, flag in marked], wanted)


def _shuffled(examples: Sequence[Example], seed: int, kind: str) -> list[Example]:
    order = list(examples)
    generator(seed, "mixture", kind).shuffle(order)
    return order
