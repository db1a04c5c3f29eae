"""Do two defenses break on the same prompts? The focal diversity of harmful answers, for each pair of defenses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from math import isnan, nan

from harness.report.data.columns import records
from harness.report.figures.spec import Grid
from harness.report.stats.ensembles import is_ensemble
from harness.report.stats.labels import condition_names, where
from harness.report.stats.results import Results
from harness.report.stats.shared_failures import Pair, shared_failures

ROWS = 12
"""Maximum number of conditions in a figure: those with the highest HS, which say most."""
FIGURES = 4
"""Maximum number of figures: those of the situations with the highest HS."""


def diversity_views(results: Results) -> list[Grid]:
    """Return a matrix for each situation in which two defenses or more gave harmful answers."""
    means, names = records(results.means), condition_names(results.means, results.rows)
    situations: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index, condition in enumerate(results.conditions):
        if means[index]["hs"] > 0 and not is_ensemble(condition, results.stage_records):
            situations[condition.situation, str(condition.names["protocol"])].append(index)
    found = []
    for indices in situations.values():
        shown = sorted(sorted(indices, key=lambda index: -means[index]["hs"])[:ROWS])
        pairs = shared_failures([results.conditions[index] for index in shown], results.grades)
        if pairs:
            harm = max(means[index]["hs"] for index in indices)
            found.append((harm, shown, pairs, len(indices) - len(shown)))
    chosen = sorted(found, key=lambda each: -each[0])[:FIGURES]
    return [
        _grid(number, where(results.means, means[shown[0]]), [names[index] for index in shown], pairs, left_out)
        for number, (_, shown, pairs, left_out) in enumerate(chosen)
    ]


def _grid(number: int, where: str, names: Sequence[str], pairs: Mapping[tuple[int, int], Pair], left_out: int) -> Grid:
    count = len(names)
    values = [[nan] * count for _ in range(count)]
    hints = [[""] * count for _ in range(count)]
    for (first, second), pair in pairs.items():
        # The first row is at the bottom: measured values are below the diagonal that rises to the right.
        values[first][second] = 100 * pair.diversity
        values[second][first] = 100 * pair.independent
        compared = f"{names[first]} and {names[second]}"
        hints[first][second], hints[second][first] = f"{compared}: measured", f"{compared}: if they were independent"
    below = [
        f"{names[first]} and {names[second]} {100 * pair.diversity:.0f} instead of {100 * pair.independent:.0f}"
        for (first, second), pair in pairs.items()
        if not isnan(pair.diversity) and pair.both
    ]
    cut = f" {left_out} with fewer harmful answers are left out." if left_out else ""
    return Grid(
        name=f"diversity-{number}",
        title=f"Do two defenses break on the same prompts? ({where})",
        x_title="below the diagonal: focal diversity of harmful answers (%)",
        y_title="above: if they were independent (%)",
        alternative="0: always harmful on the same prompts; 100: never on the same one. "
        f"Measured, instead of what independent answers would give: {', '.join(below) or 'no prompt in common'}.{cut}",
        group="diversity",
        x=names,
        y=names,
        values=values,
        hints=hints,
        marked=[[False] * count for _ in range(count)],
        defense="",
    )
