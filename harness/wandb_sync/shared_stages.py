"""Training stages shared by several sweeps of a store: each is one run, with the same description in all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any

from harness.engine.store import Store
from harness.errors import StoreError
from harness.wandb_sync.names import common_labels, title, varying


class SharedStages:
    """The sweeps of a store that share training stages with a given sweep.

    The description of a stage depends only on the sweeps that contain it, not on the sweep that is synced.

    Args:
        store: the store; unreadable sweep records are ignored.
        sweep: the sweep's id.
        record: the sweep's record.
        keys: the keys of its training stages.
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
        """Return the sweeps that contain a stage, oldest first."""
        return tuple(self._cells[key])

    def labels(self, key: str) -> dict[str, Any]:
        """Return the labels that all cells of a stage share; None where they differ."""
        return common_labels([cell for cells in self._cells[key].values() for cell in cells])

    def title(self, key: str, kind: str, labels: Mapping[str, Any]) -> str:
        """Return the name of a stage: its kind, and the labels in which the cells of its sweeps differ."""
        return title(kind, labels, self._varying(self.sweeps(key)))

    def _varying_in(self, sweeps: tuple[str, ...]) -> tuple[str, ...]:
        return varying([cell for name in sweeps for cell in self._records[name]["cells"]])
