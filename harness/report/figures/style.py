"""Looks: colour, marker and dash of each defense, the same in every figure.

The colours are those of Okabe and Ito (Color Universal Design, 2008), which colour-blind readers tell apart, in an
order in which neighbours differ in lightness; marker and dash tell the same without any colour.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Look(NamedTuple):
    """How a defense is drawn, in the words of plotly and of matplotlib."""

    colour: str
    marker: str
    dash: str
    mpl_marker: str
    mpl_dash: str | tuple[int, tuple[int, ...]]


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
COLOUR_SCALE = ("Cividis", "cividis")
"""Of surfaces: its lightness rises evenly, so that it can be read in grey; for plotly and for matplotlib."""


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Return the look of each name, by the order in which they come."""
    return {
        name: Look(
            _COLOURS[i % len(_COLOURS)],
            _MARKERS[i % len(_MARKERS)][0],
            _DASHES[i % len(_DASHES)][0],
            _MARKERS[i % len(_MARKERS)][1],
            _DASHES[i % len(_DASHES)][1],
        )
        for i, name in enumerate(dict.fromkeys(names))
    }
