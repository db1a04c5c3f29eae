"""The judges of a sweep side by side: HS of each condition under each judge."""

from __future__ import annotations

from collections.abc import Hashable
from math import isnan

from harness.report.data.columns import records
from harness.report.figures.spec import Bars, Series
from harness.report.stats.judge_order import placed_conditions
from harness.report.stats.labels import where
from harness.report.stats.results import Results
from harness.report.stats.summary import HIGH, LOW

ROWS = 30
"""Maximum number of conditions in the figure; the tables have all of them."""
SPREAD = 0.4
"""Share of a row's height over which the judges' points are spread."""


def judge_views(results: Results) -> list[Bars]:
    """Return the figure of HS by judge, with intervals; empty unless several judges graded the same answers."""
    if results.judges is None:
        return []
    rows = records(results.means)
    places: dict[tuple[Hashable, str], int] = {}
    labels: list[str] = []
    points: dict[str, list[tuple[int, float, float, float]]] = {}
    left_out = 0
    for each, row in zip(placed_conditions(results.rows, results.conditions, results.means), rows, strict=True):
        if isnan(row["hs"]):
            continue
        at = each.situation, each.name
        if at not in places:
            if len(labels) == ROWS:
                left_out += 1
                continue
            places[at] = len(labels)
            labels.append(f"{each.name}, {where(results.means, row)}")
        points.setdefault(each.judge, []).append((places[at], row["hs"], row["hs" + LOW], row["hs" + HIGH]))
    parts = []
    for number, (judge, found) in enumerate(points.items()):
        shift = SPREAD * (number / (len(points) - 1) - 0.5) if len(points) > 1 else 0.0
        with_ends = not any(isnan(low) for _, _, low, _ in found)
        parts.append(
            Series(
                name=judge,
                defense=judge,
                x=[mean for _, mean, _, _ in found],
                y=[place + shift for place, _, _, _ in found],
                low=[low for _, _, low, _ in found] if with_ends else (),
                high=[high for _, _, _, high in found] if with_ends else (),
            )
        )
    shown = f" {left_out} further scores are in the tables." if left_out else ""
    return [
        Bars(
            name="judges",
            title="HS by judge, on the same answers",
            x_title="HS (%)",
            y_title="",
            alternative=" ".join(order.sentence for order in results.judges.orders) + shown,
            labels=labels,
            dots=True,
            parts=parts,
        )
    ]
