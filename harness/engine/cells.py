"""Which cells of a sweep are one: the only definition. Ids of sweeps and of W&B runs are made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from harness.engine.identity import key_of


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class CellIdentity:
    """What tells a cell from the others of its sweep; cells in which all of it is equal are one.

    Attributes:
        labels: defense, task, attack, ratio, model and seed.
        swept: every value that the user set, by dotted name.
        keys: of its stages, by the part they play.
    """

    labels: Mapping[str, Any]
    swept: Mapping[str, Any]
    keys: Mapping[str, Any]

    @classmethod
    def of(cls, cell: Mapping[str, Any]) -> CellIdentity:
        """Return the identity of a recorded cell."""
        return cls(labels=cell["labels"], swept=cell["swept"], keys=cell["keys"])

    def __eq__(self, other: object) -> bool:
        """Whether all that tells cells apart is equal, as text."""
        return isinstance(other, CellIdentity) and self._texts == other._texts

    def __hash__(self) -> int:
        """Equal identities have the same."""
        return hash(self._texts)

    def run_id(self, sweep: str) -> str:
        """Return the id of the cell's W&B run."""
        return key_of([sweep, dict(self.labels), dict(self.swept), dict(self.keys)])

    @property
    def result(self) -> str:
        """The hash of what the cell computes and is called, however the user wrote it: a sweep's id is made of it."""
        return key_of({"labels": dict(self.labels), "keys": dict(self.keys)})

    @property
    def _texts(self) -> frozenset[tuple[str, str, str]]:
        parts = {"labels": self.labels, "swept": self.swept, "keys": self.keys}
        return frozenset((part, name, str(found)) for part, values in parts.items() for name, found in values.items())
