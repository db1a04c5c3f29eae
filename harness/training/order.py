"""The order in which rows are visited: a seeded permutation for every epoch, cut into the batches of the steps."""

import math
from collections.abc import Iterator

from torch.utils.data import Sampler

from harness.engine.seeding import generator


def permutation(seed: int, epoch: int, rows: int) -> list[int]:
    """Return the order in which an epoch visits the rows."""
    order = list(range(rows))
    generator(seed, "order", str(epoch)).shuffle(order)
    return order


class Order(Sampler[list[int]]):
    """Gives this process's share of every batch of the present epoch, as row numbers.

    The shares of all processes together are the batches that one process would see. The last one of an epoch may
    be short; a process's share of it may then be empty.

    Attributes:
        epoch: whose order is given; set before each epoch.

    Args:
        rows: how many rows there are.
        batch_size: rows of a batch over all processes together.
        seed: the root seed.
        rank: which share this process takes.
        world_size: processes that share each batch.
    """

    def __init__(self, rows: int, batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1) -> None:
        """Start at the first epoch."""
        self.epoch = 0
        self._rows = rows
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._world_size = world_size

    def __len__(self) -> int:
        """Return the batches of one epoch."""
        return math.ceil(self._rows / self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Go through the present epoch."""
        order = permutation(self._seed, self.epoch, self._rows)
        for start in range(0, self._rows, self._batch_size):
            yield order[start : start + self._batch_size][self._rank :: self._world_size]
