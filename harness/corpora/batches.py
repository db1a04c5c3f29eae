"""Batching: padding, and endless seeded batches by role.

Needs torch, so it is imported inside jobs only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from harness.corpora.encode import IGNORED, PLACES, SOURCE, Encoded
from harness.corpora.examples import Role
from harness.engine.seeding import derive, generator
from harness.errors import ConfigError, DataError, Problem


class Pool(NamedTuple):
    """The examples of a role and their global batch size, over all processes.

    ``partners``, if there are any, are the refusals of the examples' prompts, one for each. Batches come in groups of
    ``disjoint_batches`` that share no example. ``numbered`` ones are the stage's own: their batches have places.
    """

    rows: Sequence[Encoded]
    batch_size: int
    partners: Sequence[Encoded] = ()
    disjoint_batches: int = 1
    numbered: bool = False


class Pair(NamedTuple):
    """Two batches with the same prompts, in the same order, and different answers."""

    harmful: dict[str, torch.Tensor]
    refusal: dict[str, torch.Tensor]


def collate(rows: Sequence[Encoded], pad_id: int, places: Sequence[int] | None = None) -> dict[str, torch.Tensor]:
    """Right-pad examples to the longest of them.

    Args:
        rows: the examples.
        pad_id: the padding token.
        places: the index of each example among all of the stage's own; None if they are not the stage's own.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels``, int64, each ``[batch, time]``. The mask follows the lengths,
        so real tokens with the id of the padding token are not masked. With ``places``, these too, ``[batch]``; if the
        examples have sources, ``source``, ``[batch, 1]``.
    """
    sources = [[row.source] for row in rows if row.source is not None]
    longest = max(len(row.input_ids) for row in rows)
    gaps = [longest - len(row.input_ids) for row in rows]
    numbered = {} if places is None else {PLACES: torch.tensor(places)}
    return {
        **numbered,
        "input_ids": torch.tensor([row.input_ids + [pad_id] * gap for row, gap in zip(rows, gaps, strict=True)]),
        "attention_mask": torch.tensor([[1] * (longest - gap) + [0] * gap for gap in gaps]),
        "labels": torch.tensor([row.labels + [IGNORED] * gap for row, gap in zip(rows, gaps, strict=True)]),
        **({SOURCE: torch.tensor(sources)} if sources else {}),
    }


def by_tokens(lengths: Sequence[int], most: int) -> Iterator[slice]:
    """Split rows into batches of at most ``most`` tokens, padding included; a longer row is a batch of its own.

    Args:
        lengths: length of each row, in tokens; sorting minimizes padding.
        most: tokens per batch.
    """
    start = longest = 0
    for stop, length in enumerate(lengths):
        longest = max(longest, length)
        if stop > start and (stop + 1 - start) * longest > most:
            yield slice(start, stop)
            start, longest = stop, length
    if start < len(lengths):
        yield slice(start, len(lengths))


def permutation(seed: int, role: Role, epoch: int, size: int) -> list[int]:
    """Return the permutation of a role's examples in an epoch."""
    order = list(range(size))
    generator(seed, "draws", role.value, str(epoch)).shuffle(order)
    return order


class RoleBatches:
    """Endless batches by role; satisfies ``protocols.BatchProvider``.

    Each epoch of a role is a permutation of its examples that depends only on the seed, the role and the epoch, split
    into full batches, and these into full groups; the remainder is skipped in that epoch. A pool smaller than a batch
    is cycled across epochs instead. The state is one counter per role.

    Args:
        pools: the examples and batch size of every role that a method samples.
        pad_id: the padding token.
        seed: the root seed.
        rank: of this process.
        world_size: number of processes.

    Raises:
        DataError: a pool is empty, or too small for a group of disjoint batches.
        ConfigError: a batch has fewer examples than there are processes.
    """

    def __init__(
        self,
        pools: Mapping[Role, Pool],
        *,
        pad_id: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Check the pools and start every role at its first batch."""
        for role, pool in pools.items():
            if not pool.rows:
                raise DataError(
                    f"no rows with the role `{role}` are left to draw from: expected at least one; "
                    "ask for more rows of the role or raise the encoding's `max_length`"
                )
            least = pool.disjoint_batches * pool.batch_size
            if pool.disjoint_batches > 1 and len(pool.rows) < least:
                raise DataError(
                    f"{len(pool.rows)} rows with the role `{role}` are left to draw from; expected at least {least}, "
                    f"so that {pool.disjoint_batches} batches of {pool.batch_size} share none. Ask for more rows of "
                    "the role"
                )
            if pool.batch_size < world_size:
                raise ConfigError(
                    [
                        Problem(
                            "batch_size",
                            f"{pool.batch_size} for role `{role}`; expected at least one row for each "
                            f"of the {world_size} processes",
                        )
                    ]
                )
        self._pools = dict(pools)
        self._pad_id = pad_id
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._drawn = dict.fromkeys(pools, 0)
        self._orders: dict[Role, tuple[int, list[int]]] = {}

    def derive(self, *names: str) -> int:
        """Return the seed of a named random stream of the method, the same on every process."""
        return derive(self._seed, "method", *names)

    def next(self, role: Role) -> dict[str, torch.Tensor]:
        """Return this process's share of the role's next batch, each tensor ``[batch, time]``."""
        pool, indices = self._pools[role], self._advance(role)
        return collate([pool.rows[index] for index in indices], self._pad_id, indices if pool.numbered else None)

    def pair(self, role: Role) -> Pair:
        """Return this process's share of the role's next batch, with the refusals of the same prompts."""
        pool, indices = self._pools[role], self._advance(role)
        return Pair(harmful=self._batch(pool.rows, indices), refusal=self._batch(pool.partners, indices))

    def every(self, role: Role) -> Iterator[dict[str, torch.Tensor]]:
        """Yield this process's share of a role's examples once, sorted by length (descending) to reduce padding."""
        pool = self._pools[role]
        rows = sorted(pool.rows, key=lambda row: len(row.input_ids), reverse=True)[self._rank :: self._world_size]
        share = max(1, pool.batch_size // self._world_size)
        for start in range(0, len(rows), share):
            yield collate(rows[start : start + share], self._pad_id)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of batches that each role has yielded."""
        return {"drawn": {role.value: count for role, count in self._drawn.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._drawn = {role: int(state["drawn"][role.value]) for role in self._pools}

    def _batch(self, rows: Sequence[Encoded], indices: Sequence[int]) -> dict[str, torch.Tensor]:
        return collate([rows[index] for index in indices], self._pad_id)

    def _advance(self, role: Role) -> list[int]:
        """Return this process's indices of the next batch, and advance the counter."""
        indices = self._indices(role)[self._rank :: self._world_size]
        self._drawn[role] += 1
        return indices

    def _indices(self, role: Role) -> list[int]:
        rows, batch_size, _, disjoint_batches, _ = self._pools[role]
        size = len(rows)
        drawn = self._drawn[role]
        if size < batch_size:
            indices = range(drawn * batch_size, (drawn + 1) * batch_size)
            return [self._order(role, index // size)[index % size] for index in indices]
        groups = size // batch_size // disjoint_batches
        epoch, position = divmod(drawn, groups * disjoint_batches)
        return self._order(role, epoch)[position * batch_size : (position + 1) * batch_size]

    def _order(self, role: Role, epoch: int) -> list[int]:
        if self._orders.get(role, (-1,))[0] != epoch:
            self._orders[role] = (epoch, permutation(self._seed, role, epoch, len(self._pools[role].rows)))
        return self._orders[role][1]
