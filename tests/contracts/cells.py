"""Cells of the configurations that ship, composed together: what they share is then read once."""

import functools
from collections.abc import Iterable

from harness.config.build import cells_of
from harness.config.compose import Composition, compose_each
from harness.experiment.cell import Cell

Line = tuple[str, ...]


class Shelf:
    """The cells of many command lines of one cell each, composed when the first is asked for."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._lines = list(dict.fromkeys(lines))

    @functools.cached_property
    def _composed(self) -> dict[Line, Composition]:
        made = compose_each(self._lines)
        return {line: composition for line, (composition,) in zip(self._lines, made, strict=True)}

    def composition(self, *line: str) -> Composition:
        return self._composed[line]

    @functools.cache  # noqa: B019 - as long as its module
    def cell(self, *line: str) -> Cell:
        (found,) = cells_of([self.composition(*line)])
        return found
