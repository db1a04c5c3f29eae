"""Paired comparisons: lines on the same prompts and seeds, against a baseline and against the best of a column."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import ConfigError
from harness.report.data.columns import PROTOCOL_PREFIX
from harness.report.data.conditions import SITUATION, Condition
from harness.report.data.scores import Graded
from harness.report.stats.interval import estimates, holm, more_seeds
from harness.report.stats.summary import panel

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


def against_baseline(lines: Sequence[Condition], grades: Mapping[str, Graded], baseline: str) -> list[Comparison]:
    """Return every line's comparison with the baseline's line that ``counterparts`` found for it.

    Raises:
        ConfigError: no line has the baseline's defense.
    """
    pairs = counterparts(lines, baseline).items()
    return compare(lines, grades, [(*pair, score) for score in COMPARED for pair in pairs])


def counterparts(lines: Sequence[Condition], baseline: str) -> dict[int, int]:
    """Return for every other line the baseline's line of the same task, model, attack, ratio and settings.

    Settings of the defense itself are not matched. Of several, which differ in their protocol only, it is the one with
    the line's own protocol, or else with the protocol that most cells have.

    Raises:
        ConfigError: no line has the baseline's defense.
    """
    defenses = list(dict.fromkeys(str(line.names["defense"]) for line in lines))
    if lines and baseline not in defenses:
        raise ConfigError(
            [f"`--baseline`: no cell has the defense `{baseline}`; expected one of {', '.join(defenses)}"]
        )
    offered: defaultdict[Hashable, list[int]] = defaultdict(list)
    cells: Counter[object] = Counter()
    for index, line in enumerate(lines):
        cells[line.names["protocol"]] += len(line.cells)
        if line.names["defense"] == baseline:
            offered[line.situation].append(index)

    def nearness(line: Condition, other: int) -> tuple[bool, int]:
        protocol = lines[other].names["protocol"]
        return protocol == line.names["protocol"], cells[protocol]

    return {
        index: max(found, key=lambda other: nearness(line, other))
        for index, line in enumerate(lines)
        if line.names["defense"] != baseline and (found := offered.get(line.situation, []))
    }


def left_out(
    lines: Sequence[Condition], names: Sequence[str], baseline: str, comparisons: Sequence[Comparison]
) -> list[str]:
    """Return which lines with results are in no comparison with the baseline, and why: a sentence per reason.

    Args:
        lines: of the sweep.
        names: what they are called.
        baseline: the defense that others are compared with.
        comparisons: that were made.
    """
    pairs = counterparts(lines, baseline)
    compared = {index for each in comparisons for index in (each.line, each.other)}
    situations = {lines[index].situation for index in pairs}
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for index, line in enumerate(lines):
        if index in compared or all(cell[score] != cell[score] for cell in line.cells for score in COMPARED):
            continue
        place = f"{names[index]}, p={float(line.names['ratio']):g}"
        if line.names["defense"] == baseline:
            if index not in pairs.values() and line.situation in situations:
                reasons["others are compared with the one that is nearer in protocol"].append(place)
        elif index not in pairs:
            reasons[f"no {baseline} of the same task, model, attack, ratio and settings"].append(place)
        elif not _evaluated_alike(line, lines[pairs[index]]):
            reasons[f"{names[pairs[index]]} was evaluated otherwise"].append(place)
        else:
            reasons[f"no results on the seeds and prompts of {names[pairs[index]]}"].append(place)
    return [f"Not compared with {baseline} ({reason}): {'; '.join(found)}." for reason, found in reasons.items()]


def best_lines(lines: Sequence[Condition], means: DataFrame, grades: Mapping[str, Graded]) -> set[tuple[int, str]]:
    """Return the lines that are better than every other one of their column, by the paired test, with the score.

    A column holds the lines of one task, model, attack and ratio. A line with the best mean is not among them while
    any other could be as good; it has to be the better one on the seeds that both have, too.

    Args:
        lines: of the sweep.
        means: what ``summarise`` returned for them.
        grades: what ``read_grades`` returned.
    """
    columns: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index, line in enumerate(lines):
        columns[tuple(line.names[name] for name in SITUATION)].append(index)
    best = set()
    for score in COMPARED:
        for column in columns.values():
            known = {index: mean for index in column if (mean := float(means[score].iloc[index])) == mean}
            if len(known) < 2:
                continue
            leader = (min if score in LOWER_IS_BETTER else max)(known, key=known.__getitem__)
            duels = compare(lines, grades, [(leader, other, score) for other in known if other != leader])
            if len(duels) == len(known) - 1 and all(duel.p_holm < ALPHA and _won(duel) for duel in duels):
                best.add((leader, score))
    return best


def compare(
    lines: Sequence[Condition], grades: Mapping[str, Graded], pairs: Sequence[tuple[int, int, str]]
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


def _won(duel: Comparison) -> bool:
    return duel.difference < 0 if duel.score in LOWER_IS_BETTER else duel.difference > 0


def _paired(
    line: Condition, other: Condition, score: str, grades: Mapping[str, Graded]
) -> tuple[int, NDArray[Any]] | None:
    mine, theirs = panel(line, score, grades), panel(other, score, grades)
    # A line has a seed once: `told_apart` tells cells apart that would be there twice.
    places = [{seed: row for row, seed in enumerate(found.seeds)} for found in (mine, theirs)]
    rows = [(row, places[1][seed]) for seed, row in places[0].items() if seed in places[1]]
    if not rows or mine.values.shape[1] != theirs.values.shape[1] or not _evaluated_alike(line, other):
        return None
    first, second = (list(found) for found in zip(*rows, strict=True))
    return len(rows), mine.values[first] - theirs.values[second]


def _evaluated_alike(line: Condition, other: Condition) -> bool:
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
