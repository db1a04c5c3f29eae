"""Figure specifications, independent of the plotting library: the page and the files draw the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import isnan


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a figure.

    Attributes:
        name: name in the legend.
        defense: determines colour, marker and dash.
        x: horizontal coordinates.
        y: vertical coordinates.
        low: lower ends of the intervals; empty if there are none.
        high: upper ends of the intervals.
    """

    name: str
    defense: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True)
class FigureSpec:
    """Base of all figures.

    Attributes:
        name: file name and anchor.
        title: title of the figure.
        x_title: title of the horizontal axis.
        y_title: title of the vertical axis.
        alternative: text alternative.
        group: the page shows the figures of a group in one tab panel, one at a time.
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
class Lines(FigureSpec):
    """Values along an axis, one line per series."""

    series: Sequence[Series]
    markers: bool = True

    def variant(self, number: int) -> int:
        """Return how many earlier series are of the same defense: they have its style, and another filling."""
        defense = self.series[number].defense
        return sum(series.defense == defense for series in self.series[:number])

    def shifted(self, number: int) -> list[float]:
        """Return the horizontal coordinates of a series, shifted so that intervals do not overlap.

        All series of a coordinate together take a third of the smallest distance to the next one at most.
        """
        positions = sorted({x for series in self.series for x in series.x})
        shift = 0.0
        if self.markers and len(positions) > 1:
            room = min(after - before for before, after in pairwise(positions)) / 3
            shift = min((positions[-1] - positions[0]) * 0.012, room / max(len(self.series) - 1, 1))
        elif self.markers:
            shift = 0.005
        return [x + (number - (len(self.series) - 1) / 2) * shift for x in self.series[number].x]


@dataclass(frozen=True, kw_only=True)
class Grid(FigureSpec):
    """A heatmap over two swept numbers, ``values[row][column]``; marked cells belong to the robust region.

    Values that were not measured are NaN. ``hints`` name the cells on the page, in place of their coordinates.
    """

    x: Sequence[str]
    y: Sequence[str]
    values: Sequence[Sequence[float]]
    marked: Sequence[Sequence[bool]]
    defense: str
    hints: Sequence[Sequence[str]] = ()

    def texts(self, row: int) -> list[str]:
        """Return the texts of the cells of a row, formatted as in the tables."""
        return ["" if isnan(found) else f"{found:.1f}" for found in self.values[row]]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point of a trade-off with its intervals.

    Attributes:
        name: name of the condition.
        defense: determines colour and marker.
        x: FA with the ends of its interval.
        y: HS with the ends of its interval.
        z: over-refusal rate with the ends of its interval; None if it was not measured.
        usual: whether it has the most common protocol; only such points are compared.
        on_front: whether no other point dominates it.
    """

    name: str
    defense: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]
    z: tuple[float, float, float] | None = None
    usual: bool
    on_front: bool


@dataclass(frozen=True, kw_only=True)
class Points(FigureSpec):
    """A scatter plot of harm against utility, with the Pareto front.

    Two objectives have a front that is a line. With over-refusal there are three: a second panel shows harm against
    over-refusal, and the points of the front are marked in both.

    Attributes:
        points: the points.
        z_title: title of the horizontal axis of the second panel; empty if over-refusal was not measured.
    """

    points: Sequence[Point]
    z_title: str = ""

    @property
    def front(self) -> list[Point]:
        """The points on the Pareto front, from left to right."""
        return sorted((point for point in self.points if point.on_front), key=lambda point: point.x[0])

    def grouped(self) -> dict[str, list[Point]]:
        """Return the points by legend entry: points with another protocol have their own and are drawn hollow.

        A single point is called by its name, unless others are called so; several are called by their defense.
        """
        groups: dict[str, list[Point]] = {}
        for point in self.points:
            groups.setdefault(point.defense + ("" if point.usual else ", other protocol"), []).append(point)
        alone = {name: found[0].name for name, found in groups.items() if len(found) == 1}
        return {name if alone.get(name, name) in groups else alone[name]: found for name, found in groups.items()}


@dataclass(frozen=True, kw_only=True)
class Bars(FigureSpec):
    """Horizontal bars or dots, labelled from top to bottom; one series of bars per part, with optional intervals."""

    labels: Sequence[str]
    parts: Sequence[Series] = field(default_factory=tuple)
    dots: bool = False


def listed(words: Sequence[str], most: int = 8) -> str:
    """Return words as an enumeration, shortened to ``most``."""
    shown = [*words[:most], *([f"{len(words) - most} more"] if len(words) > most else [])]
    return ", ".join(shown[:-1]) + (" and " if len(shown) > 1 else "") + shown[-1] if shown else "nothing"
