"""Paired comparisons: lines on the same prompts and seeds, against a baseline and against the best of a column."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import ConfigError
from harness.report.grades import Graded
from harness.report.interval import estimates, holm, more_seeds
from harness.report.rows import PROTOCOL_PREFIX
from harness.report.table import Line

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandas import DataFrame

COMPARED = ("hs", "hs_plus", "fa")
"""The scores that lines are compared in."""
LOWER_IS_BETTER = ("hs", "hs_plus")
ALPHA = 0.05
"""A difference counts if its adjusted p value is below this."""
RESOLVED = 0.02
"""The difference, as a share, for which further seeds are counted."""
_TRAINING = (PROTOCOL_PREFIX + "align.", PROTOCOL_PREFIX + "finetune.")


class Comparison(NamedTuple):
    """A line against another, in one score, on the seeds and prompts that both have.

    Attributes:
        line: index of the line.
        other: index of the line it is compared with.
        score: the column of scores.
        difference: the line's mean less the other's, in points.
        low: end of its interval.
        high: the other end.
        p: of no difference, two-sided.
        p_holm: adjusted for all comparisons of the same score.
        seeds: that both lines have.
        more_seeds: how many further seeds would bring the interval to at most 2 points to either side; infinity where
            the prompts are too few for that.
    """

    line: int
    other: int
    score: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    seeds: int
    more_seeds: float


def against_baseline(lines: Sequence[Line], grades: Mapping[str, Graded], baseline: str) -> list[Comparison]:
    """Return every line's comparison with the baseline's line of the same task, model, attack, ratio and settings.

    Settings of the defense itself are not matched. A line without a counterpart, or with more than one, is left out.

    Raises:
        ConfigError: no line has the baseline's defense.
    """
    defenses = list(dict.fromkeys(str(line.names["defense"]) for line in lines))
    if lines and baseline not in defenses:
        raise ConfigError(
            [f"`--baseline`: no cell has the defense `{baseline}`; expected one of {', '.join(defenses)}"]
        )
    counterparts: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index, line in enumerate(lines):
        if line.names["defense"] == baseline:
            counterparts[_situation(line)].append(index)
    pairs = [
        (index, found[0])
        for index, line in enumerate(lines)
        if line.names["defense"] != baseline and len(found := counterparts.get(_situation(line), [])) == 1
    ]
    return compare(lines, grades, [(*pair, score) for score in COMPARED for pair in pairs])


def best_lines(lines: Sequence[Line], means: DataFrame, grades: Mapping[str, Graded]) -> set[tuple[int, str]]:
    """Return the lines that are better than every other one of their column, by the paired test, with the score.

    A column holds the lines of one task, model, attack and ratio. A line with the best mean is not among them while
    any other could be as good.

    Args:
        lines: of the sweep.
        means: what ``summarise`` returned for them.
        grades: what ``read_grades`` returned.
    """
    columns: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index, line in enumerate(lines):
        columns[tuple(line.names[name] for name in ("task", "model", "attack", "ratio"))].append(index)
    best = set()
    for score in COMPARED:
        for column in columns.values():
            known = {index: mean for index in column if (mean := float(means[score].iloc[index])) == mean}
            if len(known) < 2:
                continue
            leader = (min if score in LOWER_IS_BETTER else max)(known, key=known.__getitem__)
            duels = compare(lines, grades, [(leader, other, score) for other in known if other != leader])
            if len(duels) == len(known) - 1 and all(duel.p_holm < ALPHA for duel in duels):
                best.add((leader, score))
    return best


def compare(
    lines: Sequence[Line], grades: Mapping[str, Graded], pairs: Sequence[tuple[int, int, str]]
) -> list[Comparison]:
    """Return the comparisons of pairs of lines in a score; a pair without common seeds and prompts is left out."""
    paired = {pair: both for pair in pairs if (both := _paired(lines[pair[0]], lines[pair[1]], pair[2], grades))}
    found = estimates([values for _, values in paired.values()], difference=True)
    adjusted: dict[tuple[int, int, str], float] = {}
    for score in dict.fromkeys(score for _, _, score in paired):
        family = [(pair, estimate.p) for pair, estimate in zip(paired, found, strict=True) if pair[2] == score]
        adjusted |= dict(zip((pair for pair, _ in family), holm([p for _, p in family]), strict=True))
    return [
        Comparison(
            *pair,
            difference=100 * estimate.mean,
            low=100 * estimate.low,
            high=100 * estimate.high,
            p=estimate.p,
            p_holm=adjusted[pair],
            seeds=seeds,
            more_seeds=more_seeds(estimate, seeds, RESOLVED),
        )
        for (pair, (seeds, _)), estimate in zip(paired.items(), found, strict=True)
    ]


def _situation(line: Line) -> Hashable:
    """Return what a line and its baseline have in common: everything but the defense, its settings and the protocol."""
    return tuple(
        (name, str(value))
        for name, value in line.names.items()
        if name not in ("defense", "protocol") and not name.startswith("defense.")
    )


def _paired(line: Line, other: Line, score: str, grades: Mapping[str, Graded]) -> tuple[int, NDArray[Any]] | None:
    mine, theirs = line.panel(score, grades), other.panel(score, grades)
    common = [seed for seed in mine.seeds if seed in theirs.seeds]
    if not common or mine.values.shape[1] != theirs.values.shape[1] or not _evaluated_alike(line, other):
        return None
    rows = [[panel.seeds.index(seed) for seed in common] for panel in (mine, theirs)]
    return len(common), mine.values[rows[0]] - theirs.values[rows[1]]


def _evaluated_alike(line: Line, other: Line) -> bool:
    if line.names["protocol"] == other.names["protocol"]:
        return True
    mine, theirs = (_evaluation(each.cells[0]) for each in (line, other))
    return mine == theirs


def _evaluation(cell: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: str(found)
        for name, found in cell.items()
        if name.startswith(PROTOCOL_PREFIX) and not name.startswith(_TRAINING)
    }
