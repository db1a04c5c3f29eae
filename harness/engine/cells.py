"""Identity of cells: the only definition of when two cells are equal. Ids of sweeps and W&B runs derive from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from harness.engine.identity import key_of


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class CellIdentity:
    """What distinguishes a cell from the others of its sweep; cells that agree in all of it are duplicates.

    Attributes:
        labels: defense, task, attack, ratio, model and seed.
        swept: every value that the user set, by dotted name.
        keys: keys of its stages, by their role in the cell.
    """

    labels: Mapping[str, Any]
    swept: Mapping[str, Any]
    keys: Mapping[str, Any]

    @classmethod
    def of(cls, cell: Mapping[str, Any]) -> CellIdentity:
        """Return the identity of a recorded cell."""
        return cls(labels=cell["labels"], swept=cell["swept"], keys=cell["keys"])

    def __eq__(self, other: object) -> bool:
        """Return whether labels, overrides and keys are equal as text."""
        return isinstance(other, CellIdentity) and self._texts == other._texts

    def __hash__(self) -> int:
        """Return a hash that is consistent with equality."""
        return hash(self._texts)

    def run_id(self, sweep: str) -> str:
        """Return the id of the cell's W&B run."""
        return key_of([sweep, dict(self.labels), dict(self.swept), dict(self.keys)])

    @property
    def result(self) -> str:
        """Hash of labels and keys, independent of how the user wrote the overrides; part of the sweep's id."""
        return key_of({"labels": dict(self.labels), "keys": dict(self.keys)})

    @property
    def _texts(self) -> frozenset[tuple[str, str, str]]:
        parts = {"labels": self.labels, "swept": self.swept, "keys": self.keys}
        return frozenset((part, name, str(found)) for part, values in parts.items() for name, found in values.items())
