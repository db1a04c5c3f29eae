"""A cell: one point of a sweep, a chain of stages with labels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self, final

from harness.engine.cells import CellIdentity
from harness.engine.stage import Stage


@final
@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of a sweep: a chain of stages with labels.

    Attributes:
        labels: defense, task, attack, ratio, model and seed.
        swept: the values that the user set, by dotted name.
        protocol: the evaluation protocol, flattened to dotted names.
        stages: the chain, by role (``base``, ``align``, ...).
        overrides: the overrides of this cell as the user wrote them.
        probes: cells that ask the same models other questions; each is a row of its own.
        members: the cells of the sweep among whose answers an ensemble chooses; each is a row of its own.
    """

    labels: Mapping[str, object]
    swept: Mapping[str, object]
    protocol: Mapping[str, object]
    stages: Mapping[str, Stage]
    overrides: tuple[str, ...] = field(default=())
    probes: tuple[Self, ...] = ()
    members: tuple[Self, ...] = ()

    @property
    def rows(self) -> tuple[Self, ...]:
        """All rows that the cell brings into its sweep: those of its members, its own, and those of its probes."""
        return (*(row for member in self.members for row in member.rows), self, *self.probes)

    @property
    def keys(self) -> dict[str, str]:
        """The keys of the stages, by role."""
        return {part: stage.key for part, stage in self.stages.items()}

    @property
    def identity(self) -> CellIdentity:
        """Identity of the cell within its sweep; cells of equal identity are one cell."""
        return CellIdentity(labels=self.labels, swept=self.swept, keys=self.keys)

    @property
    def leaves(self) -> tuple[Stage, ...]:
        """The stages that are no parent of another one; all other stages are their ancestors."""
        parents = {parent for stage in self.stages.values() for parent in stage.parents}
        return tuple(stage for stage in self.stages.values() if stage not in parents)
