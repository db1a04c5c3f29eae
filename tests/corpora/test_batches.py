from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.corpora.batches import Pool, RoleBatches, by_tokens, collate
from harness.corpora.encode import IGNORED, Encoded
from harness.corpora.examples import Role
from harness.errors import ConfigError, DataError

SIZES = st.integers(1, 23)
BATCHES = st.integers(1, 9)


def _rows(size: int) -> list[Encoded]:
    return [Encoded([i + 10, 1], [IGNORED, i]) for i in range(size)]


def _batches(size: int, batch_size: int, **options: int) -> RoleBatches:
    return RoleBatches({Role.HARMFUL: Pool(_rows(size), batch_size)}, pad_id=0, **({"seed": 3} | options))


def _drawn(batches: RoleBatches, times: int, role: Role = Role.HARMFUL) -> list[list[int]]:
    return [batches.next(role)["labels"][:, 1].tolist() for _ in range(times)]


def test_batches_by_tokens_count_padding_and_hold_a_row_at_least() -> None:
    lengths = [30, 9, 8, 4, 4, 5, 1]

    # 2 x 9 tokens, of which a third row would make 27; then 4 x 5.
    assert list(by_tokens(lengths, 20)) == [slice(0, 1), slice(1, 3), slice(3, 7)]
    assert list(by_tokens(lengths, 19)) == [slice(0, 1), slice(1, 3), slice(3, 6), slice(6, 7)]
    assert list(by_tokens([], 20)) == []


def test_collate_pads_on_the_right_and_masks_by_length() -> None:
    batch = collate([Encoded([5, 0, 7], [IGNORED, 0, 7]), Encoded([8], [8])], pad_id=0)

    assert batch["input_ids"].tolist() == [[5, 0, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 0, 7], [8, IGNORED, IGNORED]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


@given(size=SIZES, batch_size=BATCHES)
def test_draws_within_an_epoch_never_repeat_a_row(size: int, batch_size: int) -> None:
    per_epoch = size // batch_size
    batches = _batches(size, batch_size)

    for _ in range(3 if per_epoch else 0):
        epoch = [row for batch in _drawn(batches, per_epoch) for row in batch]

        assert len(epoch) == len(set(epoch)) == per_epoch * batch_size
        assert set(epoch) <= set(range(size))


@given(size=SIZES, batch_size=st.integers(1, 4), disjoint_batches=st.integers(2, 4))
def test_no_row_is_twice_in_a_group_of_batches_and_an_epoch_uses_full_groups(
    size: int, batch_size: int, disjoint_batches: int
) -> None:
    pool = Pool(_rows(size), batch_size, disjoint_batches=disjoint_batches)
    if size < disjoint_batches * batch_size:
        with pytest.raises(DataError, match=rf"{size} rows.*at least {disjoint_batches * batch_size}"):
            RoleBatches({Role.HARMFUL: pool}, pad_id=0, seed=3)
        return
    batches = RoleBatches({Role.HARMFUL: pool}, pad_id=0, seed=3)
    epoch = size // (disjoint_batches * batch_size)

    groups = [[row for batch in _drawn(batches, disjoint_batches) for row in batch] for _ in range(3 * epoch)]

    assert all(len(set(group)) == disjoint_batches * batch_size for group in groups)
    for start in range(0, 3 * epoch, epoch):
        rows = [row for group in groups[start : start + epoch] for row in group]
        assert len(rows) == len(set(rows))


@given(size=st.integers(1, 8), surplus=st.integers(1, 9))
def test_draws_from_a_pool_smaller_than_a_batch_go_round_evenly(size: int, surplus: int) -> None:
    batch_size = size + surplus
    batches = _batches(size, batch_size)

    counted = Counter(row for batch in _drawn(batches, size) for row in batch)

    assert set(counted) == set(range(size))
    assert set(counted.values()) == {batch_size}


def test_draws_of_a_new_epoch_come_in_a_new_order() -> None:
    batches = _batches(20, 20)

    first, second = _drawn(batches, 2)

    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second


@given(size=SIZES, batch_size=BATCHES, done=st.integers(0, 12), more=st.integers(1, 6))
def test_draws_resumed_from_state_equal_the_uninterrupted_ones(
    size: int, batch_size: int, done: int, more: int
) -> None:
    whole = _batches(size, batch_size)
    expected = _drawn(whole, done + more)[done:]
    killed = _batches(size, batch_size)
    _drawn(killed, done)

    resumed = _batches(size, batch_size)
    resumed.load_state_dict(killed.state_dict())

    assert _drawn(resumed, more) == expected


@given(size=SIZES, batch_size=st.integers(3, 9), world_size=st.integers(1, 3), times=st.integers(1, 8))
def test_draws_of_all_ranks_together_are_the_global_batch(
    size: int, batch_size: int, world_size: int, times: int
) -> None:
    single = _drawn(_batches(size, batch_size), times)

    ranks = [_drawn(_batches(size, batch_size, rank=rank, world_size=world_size), times) for rank in range(world_size)]

    for step, batch in enumerate(single):
        assert sorted(row for rank in ranks for row in rank[step]) == sorted(batch)


def test_draws_of_roles_do_not_disturb_each_other() -> None:
    pools = {Role.HARMFUL: Pool(_rows(9), 4), Role.REFUSAL: Pool(_rows(9), 4)}
    both = RoleBatches(pools, pad_id=0, seed=3)
    refusals = _drawn(both, 3, Role.REFUSAL)

    harmful = _drawn(both, 3)

    assert harmful == _drawn(_batches(9, 4), 3)
    assert harmful != refusals


def test_draws_depend_on_the_seed() -> None:
    assert _drawn(_batches(20, 5), 2) != _drawn(_batches(20, 5, seed=4), 2)


def test_draws_from_an_empty_pool_are_a_data_error() -> None:
    with pytest.raises(DataError, match=r"no rows with the role `harmful`"):
        _batches(0, 4)


def test_draws_of_fewer_rows_than_processes_are_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"`batch_size`: 1 for role `harmful`"):
        _batches(4, 1, world_size=2)


@given(size=SIZES, batch_size=BATCHES)
def test_every_row_of_a_role_comes_once_in_batches_no_larger_than_declared(size: int, batch_size: int) -> None:
    batches = _batches(size, batch_size)

    visited = [batch["labels"][:, 1].tolist() for batch in batches.every(Role.HARMFUL)]

    assert sorted(row for batch in visited for row in batch) == list(range(size))
    assert all(len(batch) <= batch_size for batch in visited)


def test_every_row_comes_longest_first_and_leaves_the_draws_alone() -> None:
    rows = [Encoded([1] * length, [IGNORED] * (length - 1) + [1]) for length in (2, 5, 3)]
    batches = RoleBatches({Role.HARMFUL: Pool(rows, 1)}, pad_id=0, seed=0)
    untouched = RoleBatches({Role.HARMFUL: Pool(rows, 1)}, pad_id=0, seed=0)

    assert [batch["input_ids"].shape[1] for batch in batches.every(Role.HARMFUL)] == [5, 3, 2]
    assert batches.next(Role.HARMFUL)["input_ids"].shape == untouched.next(Role.HARMFUL)["input_ids"].shape
    assert batches.state_dict() == untouched.state_dict()
