from hypothesis import given
from hypothesis import strategies as st

from harness.training.order import Order


@given(
    rows=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    world_size=st.integers(1, 4),
    epoch=st.integers(0, 3),
    seed=st.integers(0, 5),
)
def test_order_shares_make_up_the_batches_of_one_process(rows, batch_size, world_size, epoch, seed):
    whole = Order(rows, batch_size, seed=seed)
    shares = [Order(rows, batch_size, seed=seed, rank=rank, world_size=world_size) for rank in range(world_size)]
    for order in (whole, *shares):
        order.epoch = epoch

    batches, parts = list(whole), [list(share) for share in shares]

    assert sorted(row for batch in batches for row in batch) == list(range(rows))
    assert len(whole) == len(batches)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    for place, batch in enumerate(batches):
        assert sorted(row for part in parts for row in part[place]) == sorted(batch)
        assert max(len(part[place]) for part in parts) - min(len(part[place]) for part in parts) <= 1


def test_order_differs_between_epochs_and_seeds_and_repeats_for_equal_ones():
    first, second = Order(30, 5, seed=0), Order(30, 5, seed=0)
    other_seed, other_epoch = Order(30, 5, seed=1), Order(30, 5, seed=0)
    other_epoch.epoch = 1

    assert list(first) == list(second) == list(first)
    assert list(first) != list(other_seed)
    assert list(first) != list(other_epoch)
