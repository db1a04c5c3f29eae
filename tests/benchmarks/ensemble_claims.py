"""Does focal diversity predict what a vote gains? Every subset of the members of the ensembles in a store.

``python tests/benchmarks/ensemble_claims.py STORE [SWEEP]``. For each metric and seed, over all subsets of at least two
members: the rank correlation of the subset's focal diversity on the rows of the fit with the score of its vote on the
held-out rows (mean over the folds), after the mean score of its members on the held-out rows and their number are
removed from both (partial rank correlation). Then, for each ensemble of the sweep, its gain over each control, paired
by prompt and seed (over the mean member and random subsets: by seed), with the interval of the report. Values are in
percentage points; positive is better for the ensemble.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from harness.engine.store import Store
from harness.mechanisms.focal_diversity import failures, focal_diversity
from harness.mechanisms.plurality import Ballot
from harness.protocols import NO_VOTE
from harness.report.data.conditions import conditions_of
from harness.report.stats.ensembles import PARTS
from harness.report.stats.interval import estimates
from harness.report.stats.results import load_results
from harness.stages.cross_fit import ENSEMBLE, MEAN, RANDOM
from harness.stages.ensemble import read_fusion
from harness.stages.grade import read_grades
from harness.sweep.record import read_record

Array = NDArray[Any]


class Stored:
    """A stored ensemble: folds, votes, quality and the grades of what it and its controls took."""

    def __init__(self, store: Store, key: str, score: str) -> None:
        fusion = read_fusion(store.layout.artifact("ensemble", key))
        self.facts = store.manifest(key).facts
        self.folds: Array = np.array([row["fold"] for row in fusion])
        self.classes: Array = np.array([[NO_VOTE if v is None else v for v in row["votes"]] for row in fusion])
        grades = [read_grades(store.layout.artifact("grade", member)) for member in self.facts["members"]]
        values = np.array([[row["value"] for row in each] for each in grades], dtype="float64").T
        self.quality: Array = values if score == "fa" else 1 - values
        self._sign = sign = 1 if score == "fa" else -1
        names = fusion[0]["grades"]
        self.taken = {name: sign * np.array([row["grades"][name] for row in fusion], dtype="float64") for name in names}

    def by_seed(self, control: str) -> float:
        """The gain over a control of which only the mean is stored, as a fraction."""
        gain: float = (self.facts["scores"][ENSEMBLE] - self.facts["scores"][control]) / 100
        return gain * self._sign

    def claim(self) -> float:
        """The partial rank correlation over all subsets; NaN if the diversity or the score of all subsets is equal."""
        rows = []
        for size in range(2, self.classes.shape[1] + 1):
            for members in map(list, combinations(range(self.classes.shape[1]), size)):
                rows.append((*self._subset(members), size))
        diversity, score, mean, size = np.array(rows, dtype="float64").T
        return partial_rank_correlation(diversity, score, [mean, size])

    def _subset(self, members: list[int]) -> tuple[float, float, float]:
        found = []
        for fold in np.unique(self.folds):
            fit, held = self.folds != fold, self.folds == fold
            ballot = Ballot(self.classes[held][:, members], self.quality[fit][:, members].mean(axis=0))
            taken = ballot.winners(np.ones(len(members)))
            quality = self.quality[held][:, members]
            diversity = focal_diversity(failures(self.quality[fit][:, members]))
            found.append((diversity, quality[np.arange(held.sum()), taken].mean(), quality.mean()))
        diversity, score, mean = np.mean(found, axis=0)
        return float(diversity), float(score), float(mean)


def partial_rank_correlation(first: Array, second: Array, others: Sequence[Array]) -> float:
    """Return the correlation of the ranks of two values after a linear fit of the ranks of others is removed."""
    design = np.column_stack([np.ones(len(first)), *(stats.rankdata(other) for other in others)])

    def rest(values: Array) -> Array:
        ranks = stats.rankdata(values)
        left: Array = ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0]
        return left

    one, two = rest(first), rest(second)
    scale = float(np.linalg.norm(one) * np.linalg.norm(two))
    return float(one @ two) / scale if scale > 1e-6 else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("sweep", nargs="?")
    chosen = parser.parse_args()
    store = Store(chosen.store)
    results = load_results(store, read_record(store, chosen.sweep))
    stored: defaultdict[tuple[str, str], list[Stored]] = defaultdict(list)
    for condition in conditions_of(results.rows):
        for score, part in PARTS.items():
            for cell in condition.cells:
                stage = results.stage_records.get(str(cell.get(f"key.{part}")))
                if stage is not None and stage.kind == "ensemble" and stage.finished:
                    stored[str(condition.names["defense"]), score].append(Stored(store, stage.key, score))
    for (name, score), found in stored.items():
        claims = [each.claim() for each in found]
        known = [claim for claim in claims if not np.isnan(claim)]
        spread = f"{np.mean(known):+.2f} [{min(known):+.2f}, {max(known):+.2f}]" if known else "undefined"
        diversity = [each.facts["diversity"] for each in found if each.facts["diversity"] is not None]
        overall = f"{np.mean(diversity):.3f}" if diversity else "undefined"
        pool = np.mean([each.facts["pool"] for each in found])
        print(f"\n{name}, {score}, {len(found)} seeds: diversity of all {overall}, members asked {pool:.2f}")
        print(f"  diversity with the score of the vote, partial: mean {spread} over {len(known)} seeds")
        gains = {
            control: np.stack([each.taken[ENSEMBLE] - each.taken[control] for each in found])
            for control in found[0].taken
            if control != ENSEMBLE
        } | {control: np.array([[each.by_seed(control)] for each in found]) for control in (MEAN, RANDOM)}
        for control, panel in gains.items():
            (gain,) = estimates([panel], difference=True)
            low, high = 100 * gain.low, 100 * gain.high
            print(f"  gain over {control:<13} {100 * gain.mean:+6.2f} [{low:+.2f}, {high:+.2f}]")


if __name__ == "__main__":
    main()
