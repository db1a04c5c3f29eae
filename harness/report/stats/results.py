"""Results: the data and statistics of one sweep from which all formats of a report are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from harness.engine.identity import flatten
from harness.engine.store import Store
from harness.report.data.columns import GRADINGS, KEY_PREFIX, SHARE_PREFIX
from harness.report.data.conditions import Condition, condition_columns, conditions_of
from harness.report.data.fidelity import Fidelity, fidelities
from harness.report.data.scores import Graded, read_grades
from harness.report.data.stage_records import StageRecord, load_stage_records
from harness.report.data.targets import read_targets, with_targets
from harness.report.data.tidy import grading_keys, load_rows
from harness.report.stats.agreement import judge_agreement
from harness.report.stats.ensembles import EnsembleScore, ensemble_scores
from harness.report.stats.equal_accuracy import AtEqualAccuracy, at_equal_accuracy
from harness.report.stats.judge_order import judge_orders
from harness.report.stats.judges import JudgeComparison
from harness.report.stats.labels import HEADINGS, condition_names
from harness.report.stats.paired import PLAIN, Comparison, against_baseline, best_conditions, left_out
from harness.report.stats.paper_table import Evidence, PaperTable, paper_tables
from harness.report.stats.summary import summarise
from harness.report.stats.worst_case import Adaptive, worst_cases

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, kw_only=True)
class Results:
    """Data and statistics of a sweep.

    Attributes:
        store: the store.
        record: the sweep record.
        stage_records: the stages, by key.
        grades: the gradings, by key.
        rows: tidy rows, one per cell.
        conditions: groups of cells that differ only in their seed.
        means: one row per condition, in the same order.
        baseline: the defense with which others are compared; None if the sweep has no plain training.
        comparisons: the paired comparisons with the baseline.
        left_out: notes on conditions that are not compared, with reasons.
        best: index of the condition and score, where it is significantly better than all others of its column.
        paper_tables: tables in the format of papers.
        judges: the comparison of the sweep's judges; None if no two judges graded the same answers.
        adaptive: the worst case of each defense; None if the sweep declares no attacker.
        ensembles: the finished ensembles of the sweep, next to their controls.
        equal_accuracy: each defense against training less, at equal accuracy; empty without such a baseline.
    """

    store: Store
    record: Mapping[str, Any]
    stage_records: Mapping[str, StageRecord]
    grades: Mapping[str, Graded]
    rows: DataFrame
    conditions: Sequence[Condition]
    means: DataFrame
    baseline: str | None
    comparisons: Sequence[Comparison]
    left_out: Sequence[str]
    best: frozenset[tuple[int, str]]
    paper_tables: Sequence[PaperTable]
    judges: JudgeComparison | None = None
    adaptive: Adaptive | None = None
    ensembles: Sequence[EnsembleScore] = ()
    equal_accuracy: Sequence[AtEqualAccuracy] = ()

    @cached_property
    def graded(self) -> list[str]:
        """The scores that are means of grades between 0 and 1, and not shares of prompts."""
        return [grading.score for grading in GRADINGS if self._is_graded(KEY_PREFIX + grading.stage)]

    @property
    def scale_notes(self) -> list[str]:
        """A note on the scores that are graded; empty if all are shares."""
        names = " and ".join(HEADINGS[name] for name in self.graded)
        verb = "are means" if len(self.graded) > 1 else "is a mean"
        return [f"{names} {verb} of grades between 0 and 1, of a graded judge or of several samples."] if names else []

    def _is_graded(self, column: str) -> bool:
        keys = set(self.rows[column].dropna()) if column in self.rows else set()
        scores = [self.grades[key].values for key in keys if key in self.grades]
        return any(values is not None and bool(((values > 0) & (values < 1)).any()) for values in scores)

    @cached_property
    def shares(self) -> dict[str, str]:
        """The meaning of each share that stages report, by its column."""
        return {
            SHARE_PREFIX + name: meaning
            for stage in self.stage_records.values()
            for name, meaning in stage.reported_shares.items()
        }

    @cached_property
    def fidelities(self) -> tuple[Fidelity, ...]:
        """What is known about each method of the sweep."""
        return fidelities(self.stage_records.values())

    @cached_property
    def training(self) -> dict[str, list[str]]:
        """The columns that hold the keys of training stages, by kind, in the order of the chain."""
        columns: dict[str, dict[str, None]] = {}
        for cell in self.record["cells"]:
            for part, key in cell["keys"].items():
                if key in self.stage_records and self.stage_records[key].trains:
                    columns.setdefault(self.stage_records[key].kind, {})[KEY_PREFIX + part] = None
        return {kind: list(found) for kind, found in columns.items()}


def load_results(store: Store, record: Mapping[str, Any], baseline: str | None = None) -> Results:
    """Read a sweep from the store and compute its statistics.

    Args:
        store: the store.
        record: the sweep record.
        baseline: the defense with which others are compared; None is plain training, if the sweep has it.

    Raises:
        ConfigError: the sweep has no such defense.
        StoreError: a file of the store cannot be read.
    """
    grades = read_grades(store, grading_keys(record))
    stage_records = load_stage_records(store, record)
    rows = _with_targets(load_rows(store, record, grades=grades, stage_records=stage_records), stage_records)
    conditions = conditions_of(rows)
    means = summarise(rows, grades)
    if baseline is None and PLAIN in set(rows["defense"]):
        baseline = PLAIN
    agreement = judge_agreement(record, grades)
    best = frozenset(best_conditions(conditions, means, grades))
    comparisons = tuple(against_baseline(conditions, grades, baseline)) if baseline is not None else ()
    return Results(
        store=store,
        record=record,
        stage_records=stage_records,
        grades=grades,
        rows=rows,
        conditions=conditions,
        means=means,
        baseline=baseline,
        comparisons=comparisons,
        left_out=left_out(conditions, condition_names(means, rows), baseline, comparisons)
        if baseline is not None
        else (),
        best=best,
        paper_tables=paper_tables(Evidence(rows, conditions, means, grades, best)),
        judges=JudgeComparison(agreement, judge_orders(rows, conditions, means, grades)) if agreement else None,
        adaptive=worst_cases(attacker, conditions, grades, baseline) if (attacker := record.get("attacker")) else None,
        ensembles=ensemble_scores(store, conditions, stage_records),
        equal_accuracy=at_equal_accuracy(conditions, means, grades),
    )


def _with_targets(rows: DataFrame, stage_records: Mapping[str, StageRecord]) -> DataFrame:
    """Return the rows with columns of reproduction targets, if any row matches one."""
    marked = with_targets(
        rows, read_targets(), lambda key: flatten(stage_records[key].spec), by=condition_columns(rows)
    )
    return marked if (marked["target"] != "").any() else rows
