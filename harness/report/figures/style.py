"""Style of each defense (colour, marker and dash), the same in every figure.

The colours are those of Okabe and Ito (Color Universal Design, 2008), which are safe for colour-blind readers, ordered
so that neighbours differ in lightness; marker and dash identify a defense without colour.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple


class Style(NamedTuple):
    """The style of a defense, for plotly and for matplotlib (``mpl_``)."""

    colour: str
    marker: str
    dash: str
    mpl_marker: str
    mpl_dash: str | tuple[int, tuple[int, ...]]


class Filling(NamedTuple):
    """How a marker is filled, for plotly (the end of its symbol) and for matplotlib (``mpl``)."""

    symbol: str
    mpl: Literal["full", "none", "left", "top"]


_COLOURS = ("#000000", "#D55E00", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
_MARKERS = (
    ("circle", "o"),
    ("square", "s"),
    ("diamond", "D"),
    ("triangle-up", "^"),
    ("x", "X"),
    ("triangle-down", "v"),
    ("cross", "P"),
    ("star", "*"),
)
_DASHES: tuple[tuple[str, str | tuple[int, tuple[int, ...]]], ...] = (
    ("solid", "-"),
    ("dash", "--"),
    ("dot", ":"),
    ("dashdot", "-."),
    ("longdash", (0, (8, 3))),
)
_FILLINGS = (Filling("", "full"), Filling("-open", "none"), Filling("-dot", "left"), Filling("-open-dot", "top"))
COLOUR_SCALE = ("Cividis", "cividis")
"""Colour scale of heatmaps for plotly and for matplotlib; perceptually uniform, so that it is readable in grey."""


def filling(variant: int) -> Filling:
    """Return the filling that tells a defense's markers apart: full, hollow, and so on with the variant, from 0."""
    return _FILLINGS[variant % len(_FILLINGS)]


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """Return the style of each name, assigned in the order of first occurrence."""
    return {
        name: Style(
            _COLOURS[i % len(_COLOURS)],
            _MARKERS[i % len(_MARKERS)][0],
            _DASHES[i % len(_DASHES)][0],
            _MARKERS[i % len(_MARKERS)][1],
            _DASHES[i % len(_DASHES)][1],
        )
        for i, name in enumerate(dict.fromkeys(names))
    }
