"""Data order: a seeded permutation of the training examples per epoch, split into batches."""

import math
from collections.abc import Iterator

from torch.utils.data import Sampler

from harness.engine.seeding import generator


def permutation(seed: int, epoch: int, rows: int) -> list[int]:
    """Return the permutation of the examples in an epoch."""
    order = list(range(rows))
    generator(seed, "order", str(epoch)).shuffle(order)
    return order


class Order(Sampler[list[int]]):
    """Batch sampler: yields this process's share of each global batch of the current epoch, as example indices.

    The global batches do not depend on the number of processes. The last one of an epoch may be smaller; a process's
    share of it may then be empty.

    Attributes:
        epoch: the current epoch; set before each epoch.

    Args:
        rows: number of training examples.
        batch_size: global batch size, over all processes.
        seed: the root seed.
        rank: of this process.
        world_size: number of processes.
    """

    def __init__(self, rows: int, batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1) -> None:
        """Start with epoch 0."""
        self.epoch = 0
        self._rows = rows
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._world_size = world_size

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return math.ceil(self._rows / self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of the current epoch."""
        order = permutation(self._seed, self.epoch, self._rows)
        for start in range(0, self._rows, self._batch_size):
            yield order[start : start + self._batch_size][self._rank :: self._world_size]
