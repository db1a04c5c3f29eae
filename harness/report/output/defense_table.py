"""A table with a line for each defense and notes below it, in every format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from harness.report.output.markdown import literal


class Line(NamedTuple):
    """A line: the defense that determines its filter on the page, and its cells under the heading."""

    defense: str
    cells: tuple[str, ...]


class DefenseTable(NamedTuple):
    """The heading, the lines, and the notes, one sentence or paragraph each."""

    heading: tuple[str, ...]
    lines: Sequence[Line]
    notes: Sequence[str]

    def text(self) -> list[str]:
        """Return the table and its notes as lines for a terminal, below an empty one."""
        return ["", *self._paragraphs("simple", str)]

    def markdown(self) -> list[str]:
        """Return the table and its notes as paragraphs of Markdown."""
        return self._paragraphs("pipe", literal)

    def _paragraphs(self, style: str, shown: Callable[[str], str]) -> list[str]:
        from tabulate import tabulate

        lines = [[shown(cell) for cell in line.cells] for line in self.lines]
        table = tabulate(lines, self.heading, tablefmt=style, disable_numparse=True)
        return [table, *map(shown, self.notes)]
