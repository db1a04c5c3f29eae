"""Shared failures: whether the defenses of a sweep give harmful answers to the same prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.mechanisms.focal_diversity import failures, focal_diversity
from harness.report.data.conditions import Condition
from harness.report.data.scores import Graded
from harness.report.stats.summary import Panel, panel

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Pair(NamedTuple):
    """The harmful answers of two conditions to the same prompts, seeds pooled.

    Attributes:
        diversity: focal diversity of the two, 0 to 1; NaN if neither gave a harmful answer.
        independent: the focal diversity that the same numbers of harmful answers would have if those of the one had
            nothing to do with those of the other.
        both: number of prompts that both answered harmfully, over all seeds.
    """

    diversity: float
    independent: float
    both: int


def shared_failures(conditions: Sequence[Condition], grades: Mapping[str, Graded]) -> dict[tuple[int, int], Pair]:
    """Return, for pairs of conditions by position, how far their harmful answers are to the same prompts.

    Pairs without a common seed, or without verdicts per prompt, are left out.

    Args:
        conditions: conditions that were evaluated on the same prompts.
        grades: as returned by ``read_grades``.
    """
    panels = [panel(condition, "hs", grades) for condition in conditions]
    found = {}
    for first in range(len(panels)):
        for second in range(first + 1, len(panels)):
            if common := _common(panels[first], panels[second]):
                found[first, second] = _pair(common)
    return found


def _common(first: Panel, second: Panel) -> list[NDArray[Any]]:
    """Return the verdicts of both by seed, as ``[prompts, 2]``, for the prompts that were judged for both."""
    import numpy as np

    if first.values.shape[1:] != second.values.shape[1:] or first.values.shape[1:] == (1,):
        return []
    found = []
    for seed in first.seeds:
        if seed in second.seeds:
            values = np.stack([each.values[each.seeds.index(seed)] for each in (first, second)], axis=1)
            found.append(failures(1 - values[~np.isnan(values).any(axis=1)]))
    return found


def _pair(by_seed: Sequence[NDArray[Any]]) -> Pair:
    import numpy as np

    failed = np.concatenate(by_seed)
    counts = failed.sum(axis=0)
    if not counts.any():
        return Pair(nan, nan, 0)
    chance = sum(float(np.prod(each.sum(axis=0))) / len(each) for each in by_seed if len(each))
    # d_f of two members is 1 - 2 both / (n_f + both).
    independent = float(np.mean([1 - 2 * chance / (count + chance) if count else 1.0 for count in counts]))
    return Pair(focal_diversity(failed), independent, int(failed.all(axis=1).sum()))
