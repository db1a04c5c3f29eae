"""What the ensembles of a sweep allow to say: gains over every control, and whether diversity predicts votes.

``python tests/benchmarks/ensemble_claims.py STORE [SWEEP]`` prints Markdown. For each ensemble:

1. its score and those of its controls, mean over seeds, in percent;
2. its gain over each control and over the other ensembles of the same members, in points, positive if it is better,
   paired by prompt and seed, with the report's 95 % interval over seeds and prompts (over the mean member and random
   subsets, of which only means are stored: over seeds);
3. the standard deviation of the ensemble and of its best member over seeds: the noise floor;
4. over all subsets of at least two members, the rank correlation of the subset's focal diversity on the rows of the fit
   with the score of its vote on the held-out rows (means over the folds), after the mean score of its members on the
   held-out rows and their number are removed from both (partial rank correlation), with its t interval over seeds.

Answers that could not be judged are left out: of the fit, rows with such an answer; of the held-out rows, the answer.
"""

import argparse
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from tabulate import tabulate

from harness.engine.store import Store
from harness.mechanisms.focal_diversity import failures, focal_diversity
from harness.mechanisms.plurality import Ballot
from harness.protocols import NO_VOTE
from harness.report.output.ensemble_table import CONTROLS
from harness.report.stats.ensembles import KIND, PARTS
from harness.report.stats.interval import estimates
from harness.report.stats.labels import HEADINGS, condition_names
from harness.report.stats.paired import LOWER_IS_BETTER
from harness.report.stats.results import Results, load_results
from harness.stages.cross_fit import ALL, BEST, BY_SCORE, ENSEMBLE, MEAN, RANDOM
from harness.stages.ensemble import read_fusion
from harness.stages.grade import read_grades
from harness.sweep.record import read_record

Array = NDArray[Any]


class Stored:
    """A stored ensemble of one seed and score: folds, votes, quality, and the quality of what each control took."""

    def __init__(self, store: Store, key: str, score: str) -> None:
        fusion = read_fusion(store.layout.artifact(KIND, key))
        self.facts = store.manifest(key).facts
        self.folds: Array = np.array([row["fold"] for row in fusion])
        self.classes: Array = np.array([[NO_VOTE if v is None else v for v in row["votes"]] for row in fusion])
        self.lower = score in LOWER_IS_BETTER
        grades = [read_grades(store.layout.artifact("grade", member)) for member in self.facts["members"]]
        self.quality = self._quality([[row["value"] for row in each] for each in grades]).T
        self.taken = {name: self._quality([row["grades"][name] for row in fusion]) for name in fusion[0]["grades"]}

    def _quality(self, grades: Any) -> Array:
        values = np.array(grades, dtype="float64")
        return 1 - values if self.lower else values

    def mean(self, control: str) -> float:
        """The score of the ensemble or of a control, in percent; NaN if nothing could be judged."""
        score = self.facts["scores"][control]
        return float("nan") if score is None else float(score)

    def gain(self, control: str) -> Array:
        """The gain over a control, ``[prompts]``, or ``[1]`` for one of which only the mean is stored."""
        if control in self.taken:
            return self.taken[ENSEMBLE] - self.taken[control]
        difference = (self.mean(ENSEMBLE) - self.mean(control)) / 100
        return np.array([-difference if self.lower else difference])

    def claim(self) -> float:
        """The partial rank correlation over all subsets; NaN if the diversity or the score of all subsets is equal."""
        count = self.classes.shape[1]
        rows = [
            (*self._subset(list(members)), size)
            for size in range(2, count + 1)
            for members in combinations(range(count), size)
        ]
        diversity, score, mean, size = np.array(rows, dtype="float64").T
        return partial_rank_correlation(diversity, score, [mean, size])

    def _subset(self, members: list[int]) -> tuple[float, float, float]:
        complete = ~np.isnan(self.quality).any(axis=1)
        found = []
        for fold in np.unique(self.folds):
            fit, held = (self.folds != fold) & complete, self.folds == fold
            if not fit.any():
                continue
            seen, quality = self.quality[fit][:, members], self.quality[held][:, members]
            taken = Ballot(self.classes[held][:, members], seen.mean(axis=0)).winners(np.ones(len(members)))
            chosen = quality[np.arange(len(quality)), taken]
            if not np.isnan(chosen).all():
                found.append((focal_diversity(failures(seen)), np.nanmean(chosen), np.nanmean(quality)))
        diversity, score, mean = np.mean(found, axis=0) if found else (np.nan,) * 3
        return float(diversity), float(score), float(mean)


def partial_rank_correlation(first: Array, second: Array, others: Sequence[Array]) -> float:
    """Return the correlation of the ranks of two values after a linear fit of the ranks of others is removed.

    Rows with a NaN are left out.
    """
    known = ~np.isnan([first, second, *others]).any(axis=0)
    if not known.any():
        return float("nan")
    design = np.column_stack([np.ones(known.sum()), *(stats.rankdata(other[known]) for other in others)])

    def rest(values: Array) -> Array:
        ranks = stats.rankdata(values[known])
        left: Array = ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0]
        return left

    one, two = rest(first), rest(second)
    scale = float(np.linalg.norm(one) * np.linalg.norm(two))
    return float(one @ two) / scale if scale > 1e-6 else float("nan")


def ensembles_of(results: Results) -> dict[str, dict[str, dict[Any, Stored]]]:
    """Return the finished ensembles of a sweep by name, score and seed; without their members if that is enough."""
    called = condition_names(results.means, results.rows)
    names = [
        f"{name}, p={condition.names['ratio']}, {condition.names['task']}"
        for name, condition in zip(called, results.conditions, strict=True)
    ]
    brief = [name.partition("(")[0] for name in called]
    found: dict[str, dict[str, dict[Any, Stored]]] = {}
    for number, condition in enumerate(results.conditions):
        name = brief[number] if brief.count(brief[number]) == 1 else names[number]
        for score, part in PARTS.items():
            for cell in condition.cells:
                stage = results.stage_records.get(str(cell.get(f"key.{part}")))
                if stage is not None and stage.kind == KIND and stage.finished:
                    by_seed = found.setdefault(name, {}).setdefault(score, {})
                    by_seed[cell["seed"]] = Stored(results.store, stage.key, score)
    return found


def scores_table(by_score: Mapping[str, Mapping[Any, Stored]]) -> str:
    """Return the means over seeds of an ensemble and its controls."""
    lines = []
    for score, by_seed in by_score.items():
        each = list(by_seed.values())
        means = [known_mean([one.mean(control) for one in each]) for control in CONTROLS]
        diversity = known_mean([one.facts["diversity"] for one in each])
        arrow = "lower" if score in LOWER_IS_BETTER else "higher"
        asked = known_mean([one.facts["pool"] for one in each])
        start = f"{HEADINGS[score]} ({arrow} is better)", len(each)
        numbers = *(shown(mean, ".1f") for mean in means), shown(diversity, ".2f"), shown(asked, ".1f")
        lines.append([*start, *numbers])
    return _pipe(lines, ["", "seeds", *CONTROLS.values(), "diversity of all", "asked"])


def gains_table(name: str, ensembles: Mapping[str, Mapping[str, Mapping[Any, Stored]]]) -> str:
    """Return the gains of an ensemble with their intervals, the noise over seeds, and the claim about diversity."""
    own = ensembles[name]
    lines = []
    for control in (BEST, MEAN, ALL, BY_SCORE, RANDOM):
        panels = [np.stack([each.gain(control) for each in by_seed.values()]) for by_seed in own.values()]
        lines.append([f"gain over {CONTROLS[control]}", *map(interval, panels)])
    for other, scores in ensembles.items():
        if other != name:
            gains = [interval(_over(by_seed, scores.get(score, {}))) for score, by_seed in own.items()]
            if any(gain != "-" for gain in gains):
                lines.append([f"gain over {other}", *gains])
    for control in (ENSEMBLE, BEST):
        spread = [_deviation([each.mean(control) for each in by_seed.values()]) for by_seed in own.values()]
        lines.append([f"standard deviation over seeds, {CONTROLS[control]}", *(shown(each, ".1f") for each in spread)])
    claims = [t_interval([each.claim() for each in by_seed.values()]) for by_seed in own.values()]
    lines.append(["partial rank correlation of diversity and vote", *claims])
    return _pipe(lines, ["points", *(HEADINGS[score] for score in own)])


def _over(first: Mapping[Any, Stored], second: Mapping[Any, Stored]) -> Array:
    """Return the gain of one ensemble over another of the same members, ``[seeds, prompts]``; empty without any."""
    common = [seed for seed in first if seed in second and _members(first[seed]) == _members(second[seed])]
    return np.array([first[seed].taken[ENSEMBLE] - second[seed].taken[ENSEMBLE] for seed in common])


def _members(stored: Stored) -> list[str]:
    members: list[str] = stored.facts["members"]
    return members


def interval(panel: Array) -> str:
    """Return a gain in points with its interval over seeds and prompts; without one for a single seed."""
    if not panel.size or np.isnan(panel).all():
        return "-"
    (gain,) = estimates([panel], difference=True)
    if np.isnan(gain.low):
        return "-" if np.isnan(gain.mean) else f"{100 * gain.mean:+.1f}"
    return f"{100 * gain.mean:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"


def t_interval(values: Sequence[float]) -> str:
    """Return the mean of what is known with its t interval; of one value, that alone."""
    known = [value for value in values if not np.isnan(value)]
    if not known:
        return "undefined"
    if len(known) < 2:
        return f"{known[0]:+.2f} (1 seed)"
    half = stats.t.ppf(0.975, len(known) - 1) * np.std(known, ddof=1) / len(known) ** 0.5
    counted = "" if len(known) == len(values) else f" ({len(known)} seeds)"
    return f"{np.mean(known):+.2f} [{np.mean(known) - half:+.2f}, {np.mean(known) + half:+.2f}]{counted}"


def known_mean(values: Sequence[float | None]) -> float:
    """Return the mean without None and NaN; NaN if nothing is left."""
    known = [value for value in values if value is not None and not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def _deviation(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.std(known, ddof=1)) if len(known) > 1 else float("nan")


def shown(value: float, style: str) -> str:
    """Return a number, or "-" if it is not known."""
    return "-" if np.isnan(value) else format(value, style)


def _pipe(lines: Sequence[Sequence[object]], heading: Sequence[str]) -> str:
    align = ["left", *["right"] * (len(heading) - 1)]
    return tabulate(lines, heading, tablefmt="pipe", disable_numparse=True, colalign=align)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("sweep", nargs="?")
    chosen = parser.parse_args()
    store = Store(chosen.store)
    ensembles = ensembles_of(load_results(store, read_record(store, chosen.sweep)))
    for name, by_score in ensembles.items():
        print(f"\n## {name}\n\n{scores_table(by_score)}\n\n{gains_table(name, ensembles)}")


if __name__ == "__main__":
    main()
