"""Draws figures with matplotlib as PDF and PNG files for papers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.report.figures.spec import Bars, FigureSpec, Grid, Lines, Point, Points, Series
from harness.report.figures.style import COLOUR_SCALE, Style, filling, styles_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = ("pdf", "png")
WIDTH = 4.8
"""Width in inches, close to that of one column of a two-column paper."""
HEIGHT = 3.2
MARGIN = 4.0
"""Percent beyond 0 and 100 that an axis shows at most."""
LETTERS = 40
"""Letters that fit below the columns of a heatmap."""
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "savefig.bbox": "tight",
    "savefig.dpi": 150,
}


def save(view: FigureSpec, folder: Path, styles: Mapping[str, Style]) -> list[Path]:
    """Draw a figure and return the files that were written; their metadata contain the text alternative.

    Args:
        view: the figure.
        folder: an existing folder.
        styles: styles of the defenses.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    paths = [folder / f"{view.name}.{kind}" for kind in KINDS]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT))
        if isinstance(view, Points) and view.z_title:
            figure.set_figwidth(WIDTH * 1.6)
            axes, second = figure.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.08})
            second.set(xlabel=view.z_title)
        else:
            axes, second = figure.add_subplot(), None
        axes.set(xlabel=view.x_title, ylabel=view.y_title)
        match view:
            case Lines():
                _lines(axes, view, styles)
            case Grid():
                figure.set_figheight(max(HEIGHT, 1.2 + 0.25 * len(view.y)))
                _grid(axes, view)
            case Points():
                _points(axes, second, view, styles)
            case Bars():
                figure.set_figheight(1.1 + len(view.labels) * (0.22 if view.dots else 0.18 * max(1, len(view.parts))))
                _bars(axes, view, styles)
            case _:
                raise TypeError(f"no figure is known for {type(view).__name__}")
        # Without a creation date, equal figures are equal files.
        described: dict[str, Mapping[str, Any]] = {
            "pdf": {"Title": view.title, "Subject": view.alternative, "CreationDate": None},
            "png": {"Title": view.title, "Description": view.alternative},
        }
        for path, kind in zip(paths, KINDS, strict=True):
            figure.savefig(path, metadata=described[kind])
    return paths


def _lines(axes: Axes, view: Lines, styles: Mapping[str, Style]) -> None:
    for number, series in enumerate(view.series):
        style = styles[series.defense]
        axes.errorbar(
            view.shifted(number), series.y, yerr=_errors(series.y, series), label=series.name, color=style.colour,
            marker=style.mpl_marker if view.markers else None, linestyle=style.mpl_dash, capsize=2, linewidth=1.4,
            elinewidth=0.8, markersize=5, fillstyle=filling(view.variant(number)).mpl,
        )  # fmt: skip
    if view.y_title.endswith("(%)"):
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -MARGIN), min(max(high, MARGIN), 100 + MARGIN))
    if view.markers:
        axes.set_xticks(sorted({x for series in view.series for x in series.x}))
    _legend(axes, len(view.series))


def _grid(axes: Axes, view: Grid) -> None:
    import numpy as np

    values = np.array(view.values, dtype="float64")
    image = axes.imshow(values, cmap=COLOUR_SCALE[1], origin="lower", aspect="auto")
    axes.grid(visible=False)
    framed = " (framed: robust region)" if any(map(any, view.marked)) else ""
    axes.set_title(view.title + framed, fontsize=8, loc="left", wrap=True)
    # Names would be written over each other.
    slanted = max(map(len, view.x), default=0) * len(view.x) > LETTERS
    axes.set_xticks(range(len(view.x)), view.x, rotation=45 if slanted else 0, ha="right" if slanted else "center")
    axes.set_yticks(range(len(view.y)), view.y)
    middle = np.nanmean([np.nanmin(values), np.nanmax(values)])
    for (row, column), found in np.ndenumerate(values):
        if np.isfinite(found):
            # Cividis is dark where values are low.
            colour = "white" if found < middle else "black"
            axes.text(column, row, view.texts(row)[column], ha="center", va="center", color=colour, fontsize=8)
    for (row, column), inside in np.ndenumerate(np.array(view.marked)):
        if inside:
            axes.add_patch(_frame(column, row))
    axes.figure.colorbar(image, ax=axes, fraction=0.05)


def _frame(column: int, row: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.44, row - 0.44), 0.88, 0.88, fill=False, edgecolor="#D55E00", linewidth=2)


def _points(axes: Axes, second: Axes | None, view: Points, styles: Mapping[str, Style]) -> None:
    groups = view.grouped()
    if second is None:
        axes.plot([p.x[0] for p in view.front], [p.y[0] for p in view.front], ":", color="#777777", label="front")
    for panel, axis in ((axes, "x"), (second, "z")):
        if panel is None:
            continue
        for name, points in groups.items():
            _group(panel, axis, name, points, styles[points[0].defense], with_errors=len(view.points) <= 12)
        if second is not None:
            at = [getattr(point, axis)[0] for point in view.front]
            panel.plot(
                at, [p.y[0] for p in view.front], "o", markersize=13, markerfacecolor="none", color="#777777",
                label="Pareto front",
            )  # fmt: skip
    _legend(axes, len(groups) + 1, columns=3 if second is None else 5)


def _group(axes: Axes, axis: str, name: str, points: Sequence[Point], style: Style, *, with_errors: bool) -> None:
    """Draw the points of a legend entry over one of their coordinates, without those that lack it."""
    placed = [(across, point.y) for point in points if (across := getattr(point, axis)) is not None]
    errors: dict[str, Any] = {}
    if with_errors and all(low <= high for pair in placed for _, low, high in pair):
        errors = {
            f"{direction}err": [[m - low for m, low, _ in ends], [high - m for m, _, high in ends]]
            for direction, ends in zip("xy", zip(*placed, strict=True), strict=bool(placed))
        }
    axes.errorbar(
        [across[0] for across, _ in placed], [harm[0] for _, harm in placed], **errors, linestyle="none", label=name,
        marker=style.mpl_marker, color=style.colour, capsize=2, elinewidth=0.8, markersize=6,
        fillstyle=filling(0 if points[0].usual else 1).mpl,
    )  # fmt: skip


def _bars(axes: Axes, view: Bars, styles: Mapping[str, Style]) -> None:
    inner = styles_of(part.defense for part in view.parts)
    thick = 0.8 / max(1, len(view.parts))
    for number, part in enumerate(view.parts):
        style = styles.get(part.defense, inner[part.defense])
        if view.dots:
            axes.errorbar(
                part.x, part.y, xerr=_errors(part.x, part), linestyle="none", marker=style.mpl_marker,
                color=style.colour, label=part.name, capsize=2, elinewidth=0.8, markersize=5,
            )  # fmt: skip
        else:
            places = [place + (number - (len(view.parts) - 1) / 2) * thick for place in part.y]
            hatch = ("", "///", "...")[number % 3]
            axes.barh(places, part.x, thick, label=part.name, color=style.colour, hatch=hatch, edgecolor="white")
    if view.dots:
        axes.axvline(0, color="#777777", linewidth=0.8)
    axes.set_yticks(range(len(view.labels)), view.labels)
    axes.invert_yaxis()
    _legend(axes, len(view.parts))


def _errors(means: Sequence[float], part: Series) -> Any:
    if not part.low:
        return None
    below = [max(mean - low, 0) for mean, low in zip(means, part.low, strict=True)]
    above = [max(high - mean, 0) for mean, high in zip(means, part.high, strict=True)]
    return [below, above]


def _legend(axes: Axes, entries: int, *, columns: int = 3) -> None:
    """Write the legend above the axes, in fewer columns if the figure would become wider."""
    width = axes.figure.bbox.width - axes.bbox.x0
    for ncols in range(min(columns, entries), 0, -1):
        legend = axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=ncols, fontsize=8, handlelength=3)
        if legend.get_window_extent().width <= width:
            break
