"""Cells of the configurations that ship, each composed once."""

from functools import cache

from composed import compose

from harness.config.build import cells_of
from harness.config.compose import Composition
from harness.experiment.cell import Cell


@cache
def composition(*line: str) -> Composition:
    """Return what a command line of one cell composes to."""
    (found,) = compose(line)
    return found


@cache
def cell(*line: str) -> Cell:
    """Return the cell of such a line."""
    (found,) = cells_of([composition(*line)])
    return found
