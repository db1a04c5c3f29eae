"""Sharing: a training stage that several sweeps of a store have is one run, described alike from each of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any

from harness.engine.store import Store
from harness.errors import StoreError
from harness.wandb_sync.names import common, title, varying


class SharedStages:
    """The sweeps of a store, as far as they share training stages with one of them.

    What is said of a stage depends on the sweeps that have it, and on no other, nor on the one that is asked for.

    Args:
        store: where the records are; one that cannot be read tells nothing.
        sweep: the sweep's id.
        record: its record.
        keys: of its training stages.
    """

    def __init__(self, store: Store, sweep: str, record: Mapping[str, Any], keys: Iterable[str]) -> None:
        """Read the records."""
        self._records = {sweep: record}
        for name in store.sweep_ids():
            with suppress(StoreError):
                self._records.setdefault(name, store.read_sweep(name))
        self._cells: dict[str, dict[str, list[Mapping[str, Any]]]] = {key: {} for key in keys}
        for name in sorted(self._records, key=lambda name: (self._records[name]["created"], name)):
            for cell in self._records[name]["cells"]:
                for key in self._cells.keys() & set(cell["keys"].values()):
                    self._cells[key].setdefault(name, []).append(cell)
        self._varying = cache(self._varying_in)

    def sweeps(self, key: str) -> tuple[str, ...]:
        """Return the sweeps that have a stage, oldest first."""
        return tuple(self._cells[key])

    def labels(self, key: str) -> dict[str, Any]:
        """Return what all cells of a stage have in common; None where they differ."""
        return common([cell for cells in self._cells[key].values() for cell in cells])

    def title(self, key: str, kind: str, labels: Mapping[str, Any]) -> str:
        """Return a stage's name: its kind, and those of the labels in which cells of its sweeps differ."""
        return title(kind, labels, self._varying(self.sweeps(key)))

    def _varying_in(self, sweeps: tuple[str, ...]) -> tuple[str, ...]:
        return varying([cell for name in sweeps for cell in self._records[name]["cells"]])
