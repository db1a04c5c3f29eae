"""Views: what a figure shows, free of how it is drawn. The page and the files draw the same views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isnan


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a figure.

    Attributes:
        name: in the legend.
        defense: decides colour, marker and dash.
        x: positions.
        y: values.
        low: lower ends of intervals, or none.
        high: upper ends.
    """

    name: str
    defense: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True)
class View:
    """What all views have.

    Attributes:
        name: file name and anchor.
        title: what is shown.
        x_title: of the horizontal axis.
        y_title: of the vertical axis.
        alternative: what the figure says, for readers who cannot see it.
        group: figures of the same group are shown in one place, one at a time.
        paper: whether it is also written as a file.
    """

    name: str
    title: str
    x_title: str
    y_title: str
    alternative: str
    group: str = ""
    paper: bool = True


@dataclass(frozen=True, kw_only=True)
class Lines(View):
    """Values along an axis, one line per series."""

    series: Sequence[Series]
    markers: bool = True

    def shifted(self, number: int) -> list[float]:
        """Return the positions of a series, moved aside a little where intervals would hide each other."""
        positions = {x for series in self.series for x in series.x}
        # Around a single position there is all the room of the figure.
        room = ((max(positions) - min(positions)) * 0.012 or 0.005) if self.markers else 0.0
        return [x + (number - (len(self.series) - 1) / 2) * room for x in self.series[number].x]


@dataclass(frozen=True, kw_only=True)
class Grid(View):
    """Values over two swept numbers, ``values[row][column]``; marked ones belong to the robust region.

    What is not measured is NaN.
    """

    x: Sequence[str]
    y: Sequence[str]
    values: Sequence[Sequence[float]]
    marked: Sequence[Sequence[bool]]
    defense: str

    def texts(self, row: int) -> list[str]:
        """Return what stands in the fields of a row, as the tables print it."""
        return ["" if isnan(found) else f"{found:.1f}" for found in self.values[row]]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point of a trade-off with its intervals.

    Attributes:
        name: of the line.
        defense: decides colour and marker.
        x: FA and its interval.
        y: HS and its interval.
        usual: whether it has the protocol that most points have; only those are compared.
        on_front: whether none of them beats it in both.
    """

    name: str
    defense: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]
    usual: bool
    on_front: bool


@dataclass(frozen=True, kw_only=True)
class Points(View):
    """Harm against utility, with the front."""

    points: Sequence[Point]

    def grouped(self) -> dict[str, list[Point]]:
        """Return the points by what a legend calls them: those under another protocol are drawn hollow."""
        groups: dict[str, list[Point]] = {}
        for point in self.points:
            groups.setdefault(point.defense + ("" if point.usual else ", other protocol"), []).append(point)
        return groups


@dataclass(frozen=True, kw_only=True)
class Bars(View):
    """Labelled values, from top to bottom; intervals where there are any, one row of bars per part."""

    labels: Sequence[str]
    parts: Sequence[Series] = field(default_factory=tuple)
    dots: bool = False


def listed(words: Sequence[str], most: int = 8) -> str:
    """Return words as a list in prose."""
    shown = [*words[:most], *([f"{len(words) - most} more"] if len(words) > most else [])]
    return ", ".join(shown[:-1]) + (" and " if len(shown) > 1 else "") + shown[-1] if shown else "nothing"
