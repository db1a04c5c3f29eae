"""The table of defenses against training less, at equal fine-tune accuracy."""

from __future__ import annotations

from itertools import groupby
from operator import attrgetter

from harness.report.data.columns import value
from harness.report.output.defense_table import DefenseTable, Line
from harness.report.stats.equal_accuracy import BASELINES, MARGIN, AtEqualAccuracy
from harness.report.stats.labels import condition_names, number, one_line, score
from harness.report.stats.paired import ALPHA
from harness.report.stats.results import Results

NOTE = (
    "Against training less, at equal FA: the defense's HS minus that of the setting of the baseline (in brackets) with "
    f"the lowest HS among those whose FA is at most {MARGIN:g} point lower, with the 95% interval over common seeds "
    "and prompts. Plain training counts as a setting of each baseline. "
    f"*: lower with p < {ALPHA} in the paired test, Holm over all defenses of the column at the same ratio."
)


def equal_accuracy_table(results: Results) -> DefenseTable | None:
    """Return a line for each defense and ratio, and a column for each baseline; None without a baseline."""
    if not results.equal_accuracy:
        return None
    names = condition_names(results.means, results.rows)
    baselines = [name for name in BASELINES if any(each.baseline == name for each in results.equal_accuracy)]
    lines = []
    for line, group in groupby(sorted(results.equal_accuracy, key=attrgetter("line")), attrgetter("line")):
        against = {each.baseline: _cell(each, names) for each in group}
        row = results.means.iloc[line]
        start = one_line(names[line]), value(row["ratio"]), score(row, "hs"), score(row, "fa")
        lines.append(Line(str(row["defense"]), (*start, *(against.get(name, "-") for name in baselines))))
    return DefenseTable(("defense", "ratio", "HS", "FA", *(f"against {name}" for name in baselines)), lines, [NOTE])


def _cell(each: AtEqualAccuracy, names: list[str]) -> str:
    if each.other is None:
        return "no setting has its FA"
    name = one_line(names[each.other])
    if each.harm is None:
        return f"other seeds or prompts ({name})"
    return f"{number(each.harm.difference, each.harm.low, each.harm.high)}{'*' if each.better else ''} ({name})"
