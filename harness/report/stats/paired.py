"""Paired comparisons of conditions on the same prompts and seeds: with a baseline, and within a column of a table."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.corpora.probe import PROBE
from harness.errors import ConfigError
from harness.report.data.columns import GRADINGS, KEY_PREFIX, PROTOCOL_PREFIX
from harness.report.data.conditions import SITUATION, Condition
from harness.report.data.judges import JUDGE
from harness.report.data.scores import Graded
from harness.report.stats.interval import estimates, holm, more_seeds
from harness.report.stats.summary import panel

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandas import DataFrame

COMPARED = ("hs", "hs_plus", "fa", "over_refusal")
"""The scores in which conditions are compared."""
LOWER_IS_BETTER = ("hs", "hs_plus", "over_refusal")
PLAIN = "sft"
"""The default baseline: plain training in every slot."""
ALPHA = 0.05
"""Significance level of adjusted p values."""
RESOLVED = 0.02
"""Half width of the interval, as a fraction, for which the number of additional seeds is computed."""
_TRAINING = (PROTOCOL_PREFIX + "align.", PROTOCOL_PREFIX + "finetune.")


class Comparison(NamedTuple):
    """A comparison of two conditions in one score, on their common seeds and prompts.

    Attributes:
        line: index of the condition.
        other: index of the condition it is compared with.
        score: the column of the score.
        difference: the condition's mean minus the other's, in percentage points.
        low: lower end of the interval of the difference.
        high: upper end of the interval of the difference.
        p: two-sided p value of the hypothesis of no difference.
        p_holm: p value adjusted for all comparisons of different results in the same score.
        seeds: number of common seeds.
        more_seeds: number of additional seeds for a half width of 2 points; infinity if the prompts are too few.
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


def against_baseline(conditions: Sequence[Condition], grades: Mapping[str, Graded], baseline: str) -> list[Comparison]:
    """Return the comparison of each condition with its counterpart of the baseline.

    Raises:
        ConfigError: no condition has the baseline's defense.
    """
    pairs = counterparts(conditions, baseline).items()
    return compare(conditions, grades, [(*pair, score) for score in COMPARED for pair in pairs])


def counterparts(conditions: Sequence[Condition], baseline: str) -> dict[int, int]:
    """Return, for each other condition, the baseline's condition with the same task, model, attack, ratio and settings.

    Settings of the defense itself are not matched. If several conditions of the baseline differ only in their protocol,
    the one with the same protocol is chosen, otherwise the one whose protocol most cells have.

    Raises:
        ConfigError: no condition has the baseline's defense.
    """
    defenses = list(dict.fromkeys(str(condition.names["defense"]) for condition in conditions))
    if conditions and baseline not in defenses:
        raise ConfigError(
            [f"`--baseline`: no cell has the defense `{baseline}`; expected one of {', '.join(defenses)}"]
        )
    offered: defaultdict[Hashable, list[int]] = defaultdict(list)
    cells: Counter[object] = Counter()
    for index, condition in enumerate(conditions):
        cells[condition.names["protocol"]] += len(condition.cells)
        if condition.names["defense"] == baseline:
            offered[condition.situation].append(index)

    def nearness(condition: Condition, other: int) -> tuple[bool, int]:
        protocol = conditions[other].names["protocol"]
        return protocol == condition.names["protocol"], cells[protocol]

    return {
        index: max(found, key=lambda other: nearness(condition, other))
        for index, condition in enumerate(conditions)
        if condition.names["defense"] != baseline and (found := offered.get(condition.situation, []))
    }


def left_out(
    conditions: Sequence[Condition], names: Sequence[str], baseline: str, comparisons: Sequence[Comparison]
) -> list[str]:
    """Return notes on conditions with results that are not compared with the baseline, one note per reason.

    Args:
        conditions: the conditions of the sweep.
        names: their names.
        baseline: the defense with which others are compared.
        comparisons: the comparisons with the baseline.
    """
    pairs = counterparts(conditions, baseline)
    compared = {index for each in comparisons for index in (each.line, each.other)}
    situations = {conditions[index].situation for index in pairs}
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for index, condition in enumerate(conditions):
        if index in compared or all(cell[score] != cell[score] for cell in condition.cells for score in COMPARED):
            continue
        name = f"{names[index]}, p={float(condition.names['ratio']):g}"
        if condition.names["defense"] == baseline:
            if index not in pairs.values() and condition.situation in situations:
                reasons["others are compared with the one that is nearer in protocol"].append(name)
        elif index not in pairs:
            reasons[f"no {baseline} of the same task, model, attack, ratio and settings"].append(name)
        elif not _same_evaluation(condition, conditions[pairs[index]]):
            reasons[f"{names[pairs[index]]} was evaluated differently"].append(name)
        elif _grade_keys(condition) == _grade_keys(conditions[pairs[index]]):
            reasons[f"its results are those of {names[pairs[index]]}"].append(name)
        else:
            reasons[f"no results on the seeds and prompts of {names[pairs[index]]}"].append(name)
    return [f"Not compared with {baseline} ({reason}): {'; '.join(found)}." for reason, found in reasons.items()]


def best_conditions(
    conditions: Sequence[Condition], means: DataFrame, grades: Mapping[str, Graded]
) -> set[tuple[int, str]]:
    """Return the conditions, with the score, that are significantly better than all others of their column.

    A column has the conditions of one task, model, attack, ratio, judge and probe. The condition with the best mean has
    to be better than each other one in the paired test, on their common seeds and prompts. Conditions that share all
    grades, because what was swept does not act in them, are one.

    Args:
        conditions: of the sweep.
        means: what ``summarise`` returned for them.
        grades: what ``read_grades`` returned.
    """
    columns: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index, condition in enumerate(conditions):
        columns[tuple(str(condition.names.get(name)) for name in (*SITUATION, JUDGE, PROBE))].append(index)
    best = set()
    for score in COMPARED:
        for column in columns.values():
            known = {index: mean for index in column if (mean := float(means[score].iloc[index])) == mean}
            if len(known) < 2:
                continue
            leader = (min if score in LOWER_IS_BETTER else max)(known, key=known.__getitem__)
            results = {index: set(panel(conditions[index], score, grades).grades) for index in known}
            rivals = [index for index in known if results[index] != results[leader]]
            found = compare(conditions, grades, [(leader, other, score) for other in rivals])
            if rivals and len(found) == len(rivals) and all(each.p_holm < ALPHA and _is_better(each) for each in found):
                best |= {(index, score) for index in known if index not in rivals}
    return best


def compare(
    conditions: Sequence[Condition], grades: Mapping[str, Graded], pairs: Sequence[tuple[int, int, str]]
) -> list[Comparison]:
    """Return the comparisons of pairs of conditions in a score; pairs without common seeds and prompts are left out."""
    paired = {
        pair: both for pair in pairs if (both := _pair(conditions[pair[0]], conditions[pair[1]], pair[2], grades))
    }
    found = estimates([both.values for both in paired.values()], difference=True)
    adjusted: dict[tuple[str, Hashable], float] = {}
    for score in dict.fromkeys(score for _, _, score in paired):
        # Conditions in which a swept value does not act share their results: that is one hypothesis.
        family = {
            both.results: estimate.p
            for (pair, both), estimate in zip(paired.items(), found, strict=True)
            if pair[2] == score
        }
        adjusted |= {(score, results): p for results, p in zip(family, holm(list(family.values())), strict=True)}
    return [
        Comparison(
            *pair,
            difference=100 * estimate.mean,
            low=100 * estimate.low,
            high=100 * estimate.high,
            p=estimate.p,
            p_holm=adjusted[pair[2], both.results],
            seeds=both.seeds,
            more_seeds=more_seeds(estimate, both.seeds, RESOLVED),
        )
        for (pair, both), estimate in zip(paired.items(), found, strict=True)
    ]


def _is_better(found: Comparison) -> bool:
    return found.difference < 0 if found.score in LOWER_IS_BETTER else found.difference > 0


class _Pair(NamedTuple):
    """Two conditions on their common seeds.

    Attributes:
        seeds: number of these seeds.
        results: identifies the grades that are compared.
        values: differences of verdicts, ``[seeds, prompts]``.
    """

    seeds: int
    results: Hashable
    values: NDArray[Any]


def _pair(condition: Condition, other: Condition, score: str, grades: Mapping[str, Graded]) -> _Pair | None:
    """Return the pair; None without common seeds and prompts, and if both have the same grades."""
    first, second = panel(condition, score, grades), panel(other, score, grades)
    # Seeds are unique within a condition: `distinguishing_values` separates cells that would share one.
    first_rows, second_rows = ({seed: row for row, seed in enumerate(found.seeds)} for found in (first, second))
    rows = [(row, second_rows[seed]) for seed, row in first_rows.items() if seed in second_rows]
    if not rows or first.values.shape[1] != second.values.shape[1] or not _same_evaluation(condition, other):
        return None
    results = frozenset((first.grades[row], second.grades[row_of_other]) for row, row_of_other in rows)
    if all(ours == theirs for ours, theirs in results):
        return None
    rows_of_first, rows_of_second = (list(found) for found in zip(*rows, strict=True))
    return _Pair(len(rows), results, first.values[rows_of_first] - second.values[rows_of_second])


def _grade_keys(condition: Condition) -> set[tuple[Hashable, ...]]:
    return {tuple(cell.get(KEY_PREFIX + grading.stage) for grading in GRADINGS) for cell in condition.cells}


def _same_evaluation(condition: Condition, other: Condition) -> bool:
    if condition.names["protocol"] == other.names["protocol"]:
        return True
    return _evaluation(condition.cells[0]) == _evaluation(other.cells[0])


def _evaluation(cell: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: str(found)
        for name, found in cell.items()
        if name.startswith(PROTOCOL_PREFIX) and not name.startswith(_TRAINING)
    }
