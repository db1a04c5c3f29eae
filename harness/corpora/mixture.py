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
Craft = Callable[[list[Example], list[Example], int], list[Example]]
"""Crafts exactly the given number of examples from the attacker's pool and from examples of the user (hosts)."""


class Counts(NamedTuple):
    """Number of examples of a mixture by kind."""

    harmful: int
    benign: int


class Mixture(NamedTuple):
    """The examples in stored order, whether each is the attacker's, and the actual counts."""

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


def shortage(
    wanted: Counts,
    *,
    task_rows: int,
    pool_rows: int | None,
    compat: Compat,
    hosts: bool = False,
    selects: bool = False,
    alone: bool = False,
) -> list[Problem]:
    """Return why a task and an attacker's pool are too small for a mixture; empty if they are not.

    Args:
        wanted: the counts of the mixture.
        task_rows: the size of the task.
        pool_rows: the size of the pool; None if the attack needs none.
        compat: as for ``mix``.
        hosts: whether the attack rewrites an example of the user into each of its own.
        selects: whether the attack chooses among the user's examples, so that it needs more than are sent.
        alone: whether the attack itself says how many examples there are (``rows``).
    """
    size = "attack.method.rows" if alone else "finetune.rows"
    needed = wanted.harmful + (1 if compat == "booster" and wanted.harmful else 0)
    own = wanted.benign + (wanted.harmful if hosts else 0)
    problems = []
    if own > task_rows:
        rewritten = f", {wanted.harmful} of them for the attack to rewrite" if hosts and wanted.harmful else ""
        problems.append(
            Problem(
                size,
                f"{own} benign rows requested{rewritten}, but the task has {task_rows}; lower `{size}`",
            )
        )
    elif selects and own == task_rows:
        problems.append(
            Problem(
                "finetune.rows",
                f"the attack chooses {own} of the {task_rows} rows of the task, which are all; expected fewer. Lower "
                "`finetune.rows`",
            )
        )
    if pool_rows is not None and needed > pool_rows:
        lower = f"`{size}`" if alone else f"`attack.ratio` or `{size}`"
        problems.append(
            Problem(
                size if alone else "attack.ratio",
                f"{needed} harmful rows requested, but the attacker has {pool_rows}; lower {lower}, or raise "
                "`corpus.attack.rows`",
            )
        )
    return problems


def mix(
    *,
    task: Sequence[Example],
    harmful: Sequence[Example] | None,
    craft: Craft,
    rows: int,
    ratio: float,
    compat: Compat,
    seed: int,
    hosts: bool = False,
    selects: bool = False,
    alone: bool = False,
) -> Mixture:
    """Return the mixture that a user fine-tunes on.

    With ``exact``, the task's examples and the attacker's pool are each shuffled with a seed that does not depend on
    the ratio, and a mixture takes the first of both: harmful examples at a larger ratio include those at a smaller one.
    The attack is given what remains of the task behind them as hosts, so that a larger ratio turns benign examples into
    hosts.

    Args:
        task: the user's benign examples, in their published order.
        harmful: the attacker's pool, in its published order; None if the attack needs none.
        craft: crafts the attacker's examples from the ordered pool and hosts.
        rows: the requested number of examples.
        ratio: the poison ratio, 0 to 1.
        compat: ``exact`` or ``booster``.
        seed: the root seed.
        hosts: whether ``craft`` needs a host for each example.
        selects: ``craft`` chooses the benign examples among all of the user's instead.
        alone: whether the attack itself says how many examples there are.

    Raises:
        DataError: the task or the pool has too few examples.
    """
    wanted = counts(rows, ratio, compat)
    pool_rows = None if harmful is None else len(harmful)
    if problems := shortage(
        wanted, task_rows=len(task), pool_rows=pool_rows, compat=compat, hosts=hosts, selects=selects, alone=alone
    ):
        raise DataError("\n".join(map(str, problems)))
    own = ordered_task(task, compat, seed)
    pool = list(harmful or ())[1:] if compat == "booster" else _shuffled(harmful or (), seed, "harmful")
    if selects:
        bad, good = [], craft(pool, own, wanted.benign)
    else:
        bad, good = craft(pool, own[wanted.benign :], wanted.harmful), own[: wanted.benign]
    found = Counts(harmful=len(bad), benign=len(good))
    assert found == wanted, "an attack crafts exactly the requested number of examples"
    marked = [(example, True) for example in bad] + [(example, False) for example in good]
    if compat == "exact":
        generator(seed, "mixture", "order").shuffle(marked)
    return Mixture([example for example, _ in marked], [flag for _, flag in marked], wanted)


def ordered_task(task: Sequence[Example], compat: Compat, seed: int) -> list[Example]:
    """Return the examples of a task in the order in which mixtures take them."""
    return list(task) if compat == "booster" else _shuffled(task, seed, "benign")


def _shuffled(examples: Sequence[Example], seed: int, kind: str) -> list[Example]:
    order = list(examples)
    generator(seed, "mixture", kind).shuffle(order)
    return order
