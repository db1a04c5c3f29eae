"""Means of step metrics over a logging interval, without a device synchronization per step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Meter:
    """Accumulates metrics on their device; they are transferred only in ``take``."""

    def __init__(self) -> None:
        """Start with no metrics."""
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, Tensor | float]) -> None:
        """Add the metrics of one step."""
        for name, value in metrics.items():
            number = torch.as_tensor(value).detach().double()
            self._sums[name] = self._sums[name] + number if name in self._sums else number
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Return the means since the last call, and reset."""
        if not self._sums:
            return {}
        sums: dict[str, float] = {}
        for device in {total.device for total in self._sums.values()}:
            names = [name for name, total in self._sums.items() if total.device == device]
            # One transfer for all of them.
            sums |= zip(names, torch.stack([self._sums[name] for name in names]).tolist(), strict=True)
        means = {name: sums[name] / self._counts[name] for name in self._sums}
        self._sums, self._counts = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return the sums and counts of the unfinished interval."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore an unfinished interval."""
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])
