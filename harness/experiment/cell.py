"""A cell: one point of a sweep, a chain of stages with labels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from harness.engine.cells import CellIdentity
from harness.engine.stage import Stage


@final
@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of a sweep: a chain of stages with labels.

    Attributes:
        labels: defense, task, attack, ratio, model and seed.
        swept: every value the user set, by dotted name.
        protocol: how the numbers are read, flat.
        stages: the chain, by each stage's part in it.
        overrides: what the user wrote to get this cell.
    """

    labels: Mapping[str, object]
    swept: Mapping[str, object]
    protocol: Mapping[str, object]
    stages: Mapping[str, Stage]
    overrides: tuple[str, ...] = field(default=())

    @property
    def keys(self) -> dict[str, str]:
        """The keys of the stages, by their part in the chain."""
        return {part: stage.key for part, stage in self.stages.items()}

    @property
    def identity(self) -> CellIdentity:
        """What tells the cell from others of its sweep; a cell that was asked for twice is one."""
        return CellIdentity(labels=self.labels, swept=self.swept, keys=self.keys)

    @property
    def leaves(self) -> tuple[Stage, ...]:
        """The stages of the chain that no other one reads: everything else is an ancestor of one."""
        read = {parent for stage in self.stages.values() for parent in stage.parents}
        return tuple(stage for stage in self.stages.values() if stage not in read)
