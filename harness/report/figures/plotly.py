"""Draws figures as plotly charts, in plain JSON for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from harness.report.figures.spec import Bars, FigureSpec, Grid, Lines, Points
from harness.report.figures.style import COLOUR_SCALE, Style, filling, styles_of

FONT = {"family": "system-ui, sans-serif", "size": 13, "color": "#222"}
AXIS = {"gridcolor": "#ddd", "zerolinecolor": "#999", "linecolor": "#666", "automargin": True}
HEIGHT = 380


def chart(view: FigureSpec, styles: Mapping[str, Style]) -> dict[str, Any]:
    """Return the data and layout of a plotly figure.

    Args:
        view: the figure.
        styles: styles of the defenses.
    """
    layout: dict[str, Any] = {
        "font": FONT,
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 60, "r": 40, "t": 20, "b": 50},
        # Upright in the margin: lying, it covers the legend.
        "modebar": {"orientation": "v"},
        "height": HEIGHT,
        "xaxis": {**AXIS, "title": {"text": view.x_title}},
        "yaxis": {**AXIS, "title": {"text": view.y_title}},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hovermode": "closest",
    }
    match view:
        case Lines():
            data = [_line(number, styles, view) for number in range(len(view.series))]
            if view.markers:
                layout["xaxis"] |= {"tickvals": sorted({x for series in view.series for x in series.x})}
            elif len(view.series) <= 8:
                layout["hovermode"] = "x unified"
        case Grid():
            data = _surface(view)
            layout["xaxis"] |= {"type": "category"}
            layout["yaxis"] |= {"type": "category"}
            layout["height"] = max(HEIGHT, 90 + 26 * len(view.y))
        case Points():
            data = _points(view, styles)
            if view.z_title:
                layout["xaxis"] |= {"domain": [0, 0.48]}
                layout["xaxis2"] = {**AXIS, "title": {"text": view.z_title}, "domain": [0.52, 1], "anchor": "y"}
        case Bars():
            data = _bars(view, styles)
            layout["yaxis"] |= {
                "tickvals": list(range(len(view.labels))), "ticktext": list(view.labels), "autorange": "reversed"
            }  # fmt: skip
            layout["barmode"] = "group"
            layout["height"] = 130 + len(view.labels) * (26 if view.dots else 22 * max(1, len(view.parts)))
        case _:
            raise TypeError(f"no chart is known for {type(view).__name__}")
    return {"data": data, "layout": layout}


def _line(number: int, styles: Mapping[str, Style], view: Lines) -> dict[str, Any]:
    series = view.series[number]
    style = styles[series.defense]
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers" if view.markers else "lines",
        "name": series.name,
        "meta": {"defense": series.defense},
        "x": _round(view.shifted(number)),
        "y": _round(series.y),
        "line": {"color": style.colour, "dash": style.dash, "width": 2},
        "marker": {"symbol": style.marker + filling(view.variant(number)).symbol, "size": 9},
    }
    if series.low:
        trace["error_y"] = _error(series.y, series.low, series.high, style.colour)
    return trace


def _surface(view: Grid) -> list[dict[str, Any]]:
    marked = [(x, y) for y, row in zip(view.y, view.marked, strict=True) for x, m in zip(view.x, row, strict=True) if m]
    heat: dict[str, Any] = {
        "type": "heatmap",
        "x": list(view.x),
        "y": list(view.y),
        "z": [_round(row) for row in view.values],
        # Formatted here, because plotly rounds halves up and tables do not.
        "text": [view.texts(row) for row in range(len(view.y))],
        "colorscale": COLOUR_SCALE[0],
        "texttemplate": "%{text}",
        "meta": {"defense": view.defense},
        "hovertemplate": f"{view.x_title} %{{x}}<br>{view.y_title} %{{y}}<br>%{{text}}<extra></extra>",
    }
    if view.hints:
        heat |= {
            "hovertext": [list(row) for row in view.hints],
            "hovertemplate": "%{hovertext}<br>%{text}<extra></extra>",
        }
    ring = {
        "type": "scatter",
        "mode": "markers",
        "name": "robust region",
        "meta": {"defense": view.defense},
        "showlegend": True,
        "x": [x for x, _ in marked],
        "y": [y for _, y in marked],
        "marker": {"symbol": "circle-open", "size": 42, "color": "#D55E00", "line": {"width": 3}},
        "hoverinfo": "skip",
    }
    return [heat, ring] if marked else [heat]


def _points(view: Points, styles: Mapping[str, Style]) -> list[dict[str, Any]]:
    front: dict[str, Any] = {
        "type": "scatter",
        "name": "front",
        "hoverinfo": "skip",
        "meta": {"defense": list(dict.fromkeys(point.defense for point in view.front))},
        "y": [point.y[0] for point in view.front],
    }
    if not view.z_title:
        line = {"mode": "lines", "line": {"color": "#777", "dash": "dot", "width": 2}}
        return [{**front, **line, "x": [point.x[0] for point in view.front]}, *_panel(view, styles, "x", "FA")]
    ring = {
        "mode": "markers",
        "name": "Pareto front",
        "legendgroup": "front",
        "marker": {"symbol": "circle-open", "size": 20, "color": "#777", "line": {"width": 2}},
    }
    traces = []
    for axis, score, more in (("x", "FA", {}), ("z", "OR", {"xaxis": "x2", "showlegend": False})):
        rings = {**front, **ring, "x": [getattr(point, axis)[0] for point in view.front]}
        traces += [{**trace, **more} for trace in (rings, *_panel(view, styles, axis, score))]
    return traces


def _panel(view: Points, styles: Mapping[str, Style], axis: str, score: str) -> list[dict[str, Any]]:
    """Return the points over one of their coordinates, without those that lack it."""
    traces = []
    for name, points in view.grouped().items():
        style = styles[points[0].defense]
        known = [point for point in points if getattr(point, axis) is not None]
        across = [getattr(point, axis) for point in known]
        trace: dict[str, Any] = {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "legendgroup": name,
            "meta": {"defense": points[0].defense},
            "x": _round([mean for mean, _, _ in across]),
            "y": _round([point.y[0] for point in known]),
            "text": [point.name for point in known],
            "hovertemplate": f"%{{text}}<br>{score} %{{x:.1f}}, HS %{{y:.1f}}<extra></extra>",
            "marker": {
                "symbol": style.marker + filling(0 if points[0].usual else 1).symbol,
                "size": 11,
                "color": style.colour,
            },
        }
        ends = {"x": across, "y": [point.y for point in known]}
        if known and len(view.points) <= 12 and all(low == low for each in ends.values() for _, low, _ in each):  # noqa: PLR0124
            for direction, found in ends.items():
                means, lows, highs = zip(*found, strict=True)
                trace[f"error_{direction}"] = _error(means, lows, highs, style.colour)
        traces.append(trace)
    return traces


def _bars(view: Bars, styles: Mapping[str, Style]) -> list[dict[str, Any]]:
    inner = styles_of(part.defense for part in view.parts)
    traces = []
    for part in view.parts:
        style = styles.get(part.defense, inner[part.defense])
        trace: dict[str, Any] = {"name": part.name, "x": _round(part.x), "y": list(part.y)}
        if view.dots:
            trace |= {
                "type": "scatter", "mode": "markers", "meta": {"defense": part.defense},
                "marker": {"symbol": style.marker, "size": 10, "color": style.colour},
            }  # fmt: skip
        else:
            shape = ("", "/", ".")[list(inner).index(part.defense) % 3]
            marker = {"color": style.colour, "pattern": {"shape": shape, "bgcolor": style.colour, "fgcolor": "white"}}
            trace |= {"type": "bar", "orientation": "h", "marker": marker}
        if part.low:
            trace["error_x"] = _error(part.x, part.low, part.high, style.colour)
        traces.append(trace)
    return traces


def _error(means: Sequence[float], lows: Sequence[float], highs: Sequence[float], colour: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": _round([high - mean for mean, high in zip(means, highs, strict=True)]),
        "arrayminus": _round([mean - low for mean, low in zip(means, lows, strict=True)]),
        "color": colour,
        "thickness": 1.2,
        "width": 4,
    }


def _round(values: Sequence[float]) -> list[float | None]:
    """Return the values with five significant digits; None for NaN, which JSON lacks."""
    return [float(f"{value:.5g}") if isfinite(value) else None for value in values]
