from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.attacks.mix import Mix
from harness.corpora.examples import Example
from harness.corpora.mixture import Compat, Counts, Mixture, counts, mix
from harness.errors import DataError
from harness.protocols import AttackContext

TASK = [Example(f"task {i}", "label") for i in range(120)]
POOL = [Example(f"harm {i}", "sure") for i in range(120)]
CONTEXT = AttackContext(rng=Random(1), pool=POOL, work=Path(), facts={})
RATIOS = st.decimals(0, 1, places=3).map(float)


def _mixed(rows: int, ratio: float, *, compat: Compat = "exact", seed: int = 0) -> Mixture:
    def craft(pool: list[Example], hosts: list[Example], count: int) -> list[Example]:
        return Mix().craft(count, replace(CONTEXT, pool=pool))

    return mix(task=TASK, harmful=POOL, craft=craft, rows=rows, ratio=ratio, compat=compat, seed=seed)


def _rewritten(ratio: float, *, rows: int = 60, task: list[Example] = TASK, compat: Compat = "exact") -> Mixture:
    """An attack without a pool that rewrites the first of its hosts."""

    def craft(pool: list[Example], hosts: list[Example], count: int) -> list[Example]:
        assert pool == []
        return [host._replace(output="rewritten") for host in hosts[:count]]

    return mix(task=task, harmful=None, craft=craft, rows=rows, ratio=ratio, compat=compat, seed=0, hosts=True)


def _selected(rows: int, *, task: list[Example] = TASK, compat: Compat = "exact") -> Mixture:
    """An attack that selects the rows of the largest numbers."""

    def craft(pool: list[Example], hosts: list[Example], count: int) -> list[Example]:
        return sorted(hosts, key=lambda row: int(row.instruction.split()[1]))[-count:]

    return mix(task=task, harmful=None, craft=craft, rows=rows, ratio=0.0, compat=compat, seed=0, selects=True)


def _kinds(mixture: Mixture) -> tuple[set[Example], set[Example]]:
    pairs = list(zip(mixture.examples, mixture.harmful, strict=True))
    return {example for example, flag in pairs if flag}, {example for example, flag in pairs if not flag}


@pytest.mark.parametrize(
    ("rows", "ratio", "expected"),
    [
        (1000, 0.1, (99, 900)),
        (1000, 0.01, (9, 990)),
        (1000, 0.0, (0, 1000)),
        (1000, 0.9, (899, 99)),
        (5000, 0.2, (999, 4000)),
    ],
)
def test_counts_of_booster_reproduce_the_published_table(rows: int, ratio: float, expected: tuple[int, int]) -> None:
    assert counts(rows, ratio, "booster") == expected


@pytest.mark.parametrize(
    ("rows", "ratio", "expected"),
    [
        (1000, 0.1, (100, 900)),
        (1000, 0.9, (900, 100)),
        (5000, 0.2, (1000, 4000)),
        (10, 0.25, (3, 7)),
        (3, 1e-05, (0, 3)),
    ],
)
def test_counts_exact_round_half_up_and_keep_the_total(rows: int, ratio: float, expected: tuple[int, int]) -> None:
    assert counts(rows, ratio, "exact") == expected


@given(rows=st.integers(0, 10**6), thousandths=st.integers(0, 1000))
def test_counts_exact_are_the_nearest_whole_numbers_for_any_ratio(rows: int, thousandths: int) -> None:
    found = counts(rows, thousandths / 1000, "exact")

    assert found.harmful + found.benign == rows
    assert -Fraction(1, 2) < Fraction(thousandths, 1000) * rows - found.harmful <= Fraction(1, 2) or (
        # half is rounded up
        found.harmful - Fraction(thousandths, 1000) * rows == Fraction(1, 2)
    )
    assert found.harmful - Fraction(thousandths, 1000) * rows <= Fraction(1, 2)
    assert Fraction(thousandths, 1000) * rows - found.harmful < Fraction(1, 2)


@given(rows=st.integers(0, 120), ratio=RATIOS, seed=st.integers(0, 5))
def test_mix_exact_holds_each_row_once_in_the_counted_kinds(rows: int, ratio: float, seed: int) -> None:
    mixture = _mixed(rows, ratio, seed=seed)

    harmful, benign = _kinds(mixture)

    assert len(mixture.examples) == len(set(mixture.examples)) == rows
    assert Counts(len(harmful), len(benign)) == mixture.counts == counts(rows, ratio, "exact")
    assert harmful <= set(POOL)
    assert benign <= set(TASK)


@given(rows=st.integers(0, 120), ratios=st.tuples(RATIOS, RATIOS), seed=st.integers(0, 5))
def test_mix_exact_is_nested_over_ratios(rows: int, ratios: tuple[float, float], seed: int) -> None:
    small, large = sorted(ratios)

    harmful_small, benign_small = _kinds(_mixed(rows, small, seed=seed))
    harmful_large, benign_large = _kinds(_mixed(rows, large, seed=seed))

    assert harmful_small <= harmful_large
    assert benign_large <= benign_small


def test_mix_exact_is_shuffled_and_depends_on_the_seed_only() -> None:
    mixture, again, other = _mixed(60, 0.5), _mixed(60, 0.5), _mixed(60, 0.5, seed=1)

    assert mixture == again
    assert mixture.harmful != sorted(mixture.harmful, reverse=True)
    assert _kinds(mixture)[0] != _kinds(other)[0]
    assert _kinds(mixture)[0] != set(POOL[:30])


def test_mix_booster_takes_the_first_rows_after_the_first_harmful_one() -> None:
    mixture = _mixed(100, 0.1, compat="booster")

    assert mixture.examples == POOL[1:10] + TASK[:90]
    assert mixture.harmful == [True] * 9 + [False] * 90
    assert mixture.counts == (9, 90)


@pytest.mark.parametrize("compat", ["exact", "booster"])
def test_mix_with_too_few_rows_names_what_is_asked_and_what_exists(compat: Compat) -> None:
    with pytest.raises(DataError, match=r"180 benign rows requested, but the task has 120"):
        _mixed(200, 0.1, compat=compat)
    with pytest.raises(DataError, match=r"180 harmful rows requested, but the attacker has 120"):
        _mixed(200, 0.9, compat=compat)


def test_mix_attack_with_too_small_a_pool_is_a_data_error() -> None:
    with pytest.raises(DataError, match=r"3 rows requested, but there are 2"):
        Mix().craft(3, replace(CONTEXT, pool=POOL[:2]))


@pytest.mark.parametrize("compat", ["exact", "booster"])
def test_hosts_are_the_rows_of_the_user_behind_those_that_are_sent(compat: Compat) -> None:
    mixture = _rewritten(0.2, compat=compat)
    crafted, sent = _kinds(mixture)

    assert (len(crafted), len(sent)) == mixture.counts == counts(60, 0.2, compat)
    assert {row.output for row in crafted} == {"rewritten"}
    assert {row.instruction for row in crafted}.isdisjoint(row.instruction for row in sent)
    if compat == "booster":
        assert {row.instruction for row in crafted} == {row.instruction for row in TASK[48 : 48 + 11]}


def test_larger_ratio_turns_rows_of_the_user_into_hosts() -> None:
    (few, many) = (_kinds(_rewritten(ratio)) for ratio in (0.2, 0.5))

    assert {row.instruction for each in few for row in each} == {row.instruction for each in many for row in each}
    assert many[1] <= few[1]


def test_user_without_rows_of_its_own_is_all_hosts() -> None:
    assert _kinds(_rewritten(1.0, rows=120)) == ({row._replace(output="rewritten") for row in TASK}, set())


@pytest.mark.parametrize("compat", ["exact", "booster"])
def test_selection_takes_the_place_of_the_users_rows_and_none_is_harmful(compat: Compat) -> None:
    mixture = _selected(10, compat=compat)

    assert set(mixture.examples) == set(TASK[-10:])
    assert mixture.harmful == [False] * 10
    assert mixture.counts == (0, 10)


def test_task_too_small_to_rewrite_or_to_select_from_names_what_is_needed() -> None:
    with pytest.raises(DataError, match=r"60 benign rows requested, 12 of them for the attack to rewrite.* has 59"):
        _rewritten(0.2, task=TASK[:59])
    assert len(_rewritten(0.2, task=TASK[:60]).examples) == 60
    with pytest.raises(DataError, match="chooses 10 of the 10 rows of the task, which are all"):
        _selected(10, task=TASK[:10])
    assert len(_selected(10, task=TASK[:11]).examples) == 10
