"""Ensembles: their scores next to those of the controls, and whether they gain over the best single member."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.engine.store import Store
from harness.errors import StoreError
from harness.report.data.columns import KEY_PREFIX
from harness.report.data.conditions import Condition
from harness.report.data.stage_records import StageRecord
from harness.report.stats.interval import estimates
from harness.report.stats.paired import LOWER_IS_BETTER
from harness.stages.cross_fit import BEST, ENSEMBLE
from harness.stages.ensemble import read_fusion

if TYPE_CHECKING:
    from numpy.typing import NDArray

KIND = "ensemble"
"""Kind of the stage that chooses an ensemble's answers."""
PARTS = {"hs": "harm_answers", "fa": "task_answers", "over_refusal": "over_refusal_answers"}
"""The answers behind each score of an ensemble."""


class EnsembleScore(NamedTuple):
    """One score of an ensemble, and of its controls; means over seeds.

    Attributes:
        line: index of the condition.
        defense: its label.
        score: the column of the score.
        seeds: number of seeds.
        scores: in percent, of the ensemble and of each control by name.
        diversity: focal diversity of all members' failures, 0 to 1; NaN if no member ever fails.
        pool: mean number of members that are asked.
        gain: points by which the ensemble is better than the best member as chosen on the other folds.
        low: lower end of the interval of the gain over seeds and prompts; NaN for one seed.
        high: upper end.
    """

    line: int
    defense: str
    score: str
    seeds: int
    scores: Mapping[str, float]
    diversity: float
    pool: float
    gain: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """What the gain allows to say."""
        if self.low > 0:
            return "better than its best member"
        return "worse than its best member" if self.high < 0 else "no gain over its best member"


def is_ensemble(condition: Condition, stage_records: Mapping[str, StageRecord]) -> bool:
    """Return whether a condition is an ensemble: its answers and its training are those of its members."""
    return any(_stage(cell, "harm_answers", stage_records) is not None for cell in condition.cells)


def ensemble_scores(
    store: Store, conditions: Sequence[Condition], stage_records: Mapping[str, StageRecord]
) -> list[EnsembleScore]:
    """Return the scores of the finished ensembles of a sweep.

    Raises:
        StoreError: an artifact cannot be read.
    """
    found = []
    for line, condition in enumerate(conditions):
        for score, part in PARTS.items():
            stages = {stage.key: stage for cell in condition.cells if (stage := _stage(cell, part, stage_records))}
            finished = [stage for stage in stages.values() if stage.finished]
            if finished:
                found.append(_score(store, line, condition, score, finished))
    return found


def _stage(cell: Mapping[str, Any], part: str, stage_records: Mapping[str, StageRecord]) -> StageRecord | None:
    stage = stage_records.get(str(cell.get(KEY_PREFIX + part)))
    return stage if stage is not None and stage.kind == KIND else None


def _score(store: Store, line: int, condition: Condition, score: str, stages: Sequence[StageRecord]) -> EnsembleScore:
    facts = [stage.facts for stage in stages]
    names = dict.fromkeys(name for each in facts for name in each["scores"])
    sign = -1 if score in LOWER_IS_BETTER else 1
    (gain,) = estimates([sign * _gains(store, stages)], difference=True)
    return EnsembleScore(
        line=line,
        defense=str(condition.names["defense"]),
        score=score,
        seeds=len(stages),
        scores={name: _mean([each["scores"].get(name) for each in facts]) for name in names},
        diversity=_mean([each["diversity"] for each in facts]),
        pool=_mean([each["pool"] for each in facts]),
        gain=100 * gain.mean,
        low=100 * gain.low,
        high=100 * gain.high,
    )


def _gains(store: Store, stages: Sequence[StageRecord]) -> NDArray[Any]:
    """Return the grade of the ensemble less that of the best member, ``[seeds, prompts]``; NaN if not judged."""
    import numpy as np

    by_seed = []
    for stage in stages:
        try:
            rows = [row["grades"] for row in read_fusion(store.layout.artifact(KIND, stage.key))]
        except (ValueError, KeyError) as error:
            raise StoreError(f"the record of the choices of ensemble {stage.key} cannot be read: {error}") from None
        by_seed.append([_less(row[ENSEMBLE], row[BEST]) for row in rows])
    return np.array(by_seed, dtype="float64")


def _less(first: float | None, second: float | None) -> float:
    return nan if first is None or second is None else first - second


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else nan
