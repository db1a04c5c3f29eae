"""Whether the order of the defenses depends on the judge: pairs of defenses in the same situation, judge by judge."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations, pairwise
from math import isnan
from typing import TYPE_CHECKING, NamedTuple

from harness.report.data.columns import records
from harness.report.data.conditions import Condition, condition_name, varying
from harness.report.data.judges import JUDGE, judge_labels, protocol_of
from harness.report.data.scores import Graded
from harness.report.stats.paired import ALPHA, compare

if TYPE_CHECKING:
    from pandas import DataFrame

MOST_PAIRS = 400
"""Above this number of pairs of conditions, reversals are counted but not tested."""
_SHOWN = 6


class Order(NamedTuple):
    """The order of the defenses under two judges, pair by pair in the same situation.

    Attributes:
        first: one judge.
        second: the other judge.
        pairs: number of pairs of defenses that both judges scored in the same situation.
        reversed: number of pairs whose order is opposite.
        tied: number of pairs that have equal scores under one judge and not under the other.
        significant: number of reversed pairs that differ significantly under both judges; None if not tested.
        orders: the defenses by each judge's mean HS over the situations in which all were scored, lowest first; empty
            if there is no such situation.
    """

    first: str
    second: str
    pairs: int
    reversed: int
    tied: int
    significant: int | None
    orders: tuple[str, str]

    @property
    def sentence(self) -> str:
        """Whether the order survives the change of judge."""
        if not self.pairs:
            return f"No two defenses were scored by both {self.first} and {self.second}."
        change = f"the change of judge from {self.first} to {self.second}"
        counted = f"{self.reversed} {'is' if self.reversed == 1 else 'are'} reversed"
        pairs = f"{self.pairs} {'pair' if self.pairs == 1 else 'pairs'} of defenses at the same ratio"
        tied = f", {self.tied} tied under one judge only" if self.tied else ""
        if self.reversed:
            verdict = f"survives {change} within noise only" if self.significant == 0 else f"does not survive {change}"
            tested = "not tested" if self.significant is None else f"{self.significant} significantly under both"
            stated = f"{verdict}: of {pairs}, {counted} ({tested}){tied}"
        elif self.tied:
            stated = f"survives {change} in part: of {pairs}, none is reversed{tied}"
        else:
            stated = f"survives {change}: {self.pairs} of {pairs} ordered alike"
        orders = f"; by mean HS, {self.first}: {self.orders[0]}; {self.second}: {self.orders[1]}"
        return f"The order of the defenses by HS {stated}{orders if self.orders[0] else ''}."


class PlacedCondition(NamedTuple):
    """A condition: its judge, its situation, its defense, and its name without the judge."""

    judge: str
    situation: Hashable
    defense: str
    name: str


def placed_conditions(rows: DataFrame, conditions: Sequence[Condition], means: DataFrame) -> list[PlacedCondition]:
    """Return the judge, the situation and the name of each condition; all but the judge is equal for counterparts."""
    protocols = [protocol_of(condition.cells[0]) for condition in conditions]
    swept = [name for name in varying(means, rows) if name != JUDGE and not name.startswith(f"{JUDGE}.")]
    placed = []
    for condition, protocol, judge in zip(conditions, protocols, judge_labels(protocols), strict=True):
        # Training settings are part of the protocol too; what the sweep varies of them is part of the situation.
        alike = tuple(
            (name, str(found))
            for name, found in protocol.items()
            if name != JUDGE and not name.startswith((f"{JUDGE}.", "align.", "finetune."))
        )
        names = {name: found for name, found in condition.names.items() if name.partition(".")[0] != JUDGE}
        situation = Condition(names, condition.cells).situation, alike
        placed.append(
            PlacedCondition(judge, situation, str(condition.names["defense"]), condition_name(condition.names, swept))
        )
    return placed


class _Scored(NamedTuple):
    """The conditions with a score: their places, scores in percent, and indices by judge, situation and name."""

    placed: Sequence[PlacedCondition]
    scores: Sequence[float]
    by_judge: Mapping[str, Mapping[tuple[Hashable, str], int]]


def judge_orders(
    rows: DataFrame, conditions: Sequence[Condition], means: DataFrame, grades: Mapping[str, Graded]
) -> list[Order]:
    """Return the comparison of the order of the defenses for each pair of judges.

    Args:
        rows: as returned by ``load_rows``.
        conditions: as returned by ``conditions_of``.
        means: as returned by ``summarise``.
        grades: as returned by ``read_grades``.
    """
    placed = placed_conditions(rows, conditions, means)
    scores = [float(row["hs"]) for row in records(means)]
    by_judge: defaultdict[str, dict[tuple[Hashable, str], int]] = defaultdict(dict)
    for index, each in enumerate(placed):
        if not isnan(scores[index]):
            by_judge[each.judge][each.situation, each.name] = index
    scored = _Scored(placed, scores, by_judge)
    return [_order(first, second, scored, conditions, grades) for first, second in combinations(by_judge, 2)]


def _order(
    first: str, second: str, scored: _Scored, conditions: Sequence[Condition], grades: Mapping[str, Graded]
) -> Order:
    placed, scores, by_judge = scored
    situations: defaultdict[Hashable, list[str]] = defaultdict(list)
    for situation, name in by_judge[first]:
        if (situation, name) in by_judge[second]:
            situations[situation].append(name)
    pairs = []
    for situation, names in situations.items():
        for one, other in combinations(names, 2):
            at = [by_judge[judge][situation, name] for judge in (first, second) for name in (one, other)]
            if placed[at[0]].defense != placed[at[1]].defense:
                pairs.append(at)
    signs = [(_sign(scores[a] - scores[b]), _sign(scores[c] - scores[d])) for a, b, c, d in pairs]
    opposite = [at for at, (one, other) in zip(pairs, signs, strict=True) if one * other < 0]
    names = list(dict.fromkeys(name for found in situations.values() for name in found))
    complete = [situation for situation, found in situations.items() if set(found) == set(names)]
    ranked = [
        _ranked({name: [scores[by_judge[judge][at, name]] for at in complete] for name in names} if complete else {})
        for judge in (first, second)
    ]
    return Order(
        first=first,
        second=second,
        pairs=len(pairs),
        reversed=len(opposite),
        tied=sum((one == 0) != (other == 0) for one, other in signs),
        significant=_significant(pairs, opposite, conditions, grades) if len(pairs) <= MOST_PAIRS else None,
        orders=(ranked[0], ranked[1]),
    )


def _significant(
    pairs: Sequence[Sequence[int]],
    opposite: Sequence[Sequence[int]],
    conditions: Sequence[Condition],
    grades: Mapping[str, Graded],
) -> int:
    """Return how many of the reversed pairs differ significantly under both judges; Holm over all pairs of a judge."""
    if not opposite:
        return 0
    differing = []
    for place in (0, 2):
        found = compare(conditions, grades, [(at[place], at[place + 1], "hs") for at in pairs])
        differing.append({(each.line, each.other) for each in found if each.p_holm < ALPHA})
    return sum((at[0], at[1]) in differing[0] and (at[2], at[3]) in differing[1] for at in opposite)


def _ranked(scores: Mapping[str, Sequence[float]]) -> str:
    """Return names in the order of their mean scores, as in ``booster < vaccine = sft``."""
    ordered = sorted(scores, key=lambda name: sum(scores[name]))
    text = ""
    for before, name in pairwise(ordered[:_SHOWN]):
        equal = _sign(sum(scores[name]) - sum(scores[before])) == 0
        text += f" {'=' if equal else '<'} {name}"
    return "".join(ordered[:1]) + text + (" < ..." if len(ordered) > _SHOWN else "")


def _sign(difference: float) -> int:
    # Means of equal scores may differ by rounding.
    return 0 if abs(difference) < 1e-9 else 1 if difference > 0 else -1
