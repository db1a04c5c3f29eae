"""Findings: everything that a report of one sweep is made of, read once and computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from harness.engine.identity import flatten
from harness.engine.store import Store
from harness.report.data.columns import KEY_PREFIX
from harness.report.data.conditions import Condition, conditions_of, telling
from harness.report.data.scores import Graded, read_grades
from harness.report.data.stage_records import StageRecord, load_stage_records
from harness.report.data.targets import mark, read
from harness.report.data.tidy import grading_keys, load_rows
from harness.report.stats.labels import condition_names
from harness.report.stats.paired import Comparison, against_baseline, best_lines, left_out
from harness.report.stats.paper_table import Evidence, PaperTable, paper_tables
from harness.report.stats.summary import summarise

if TYPE_CHECKING:
    from pandas import DataFrame

PLAIN = "sft"
"""The baseline if none is named: plain training in every slot."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """What is known of a sweep.

    Attributes:
        store: where the artifacts are.
        record: what was asked for.
        ledger: the stages, by key.
        grades: the gradings, by key.
        rows: one per cell.
        lines: the cells that differ in nothing but their seed.
        means: one row per line, in the order of ``lines``.
        baseline: the defense that the others are compared with; None if the sweep has no plain training.
        comparisons: of every line with its baseline.
        left_out: sentences that say which lines are in no comparison, and why.
        best: lines and scores that are better than all others of their column, by the paired test.
        boards: the tables as papers print them.
    """

    store: Store
    record: Mapping[str, Any]
    ledger: Mapping[str, StageRecord]
    grades: Mapping[str, Graded]
    rows: DataFrame
    lines: Sequence[Condition]
    means: DataFrame
    baseline: str | None
    comparisons: Sequence[Comparison]
    left_out: Sequence[str]
    best: frozenset[tuple[int, str]]
    paper_tables: Sequence[PaperTable]

    @cached_property
    def training(self) -> dict[str, list[str]]:
        """The columns that hold the keys of training stages, by kind, in the order of the chain."""
        columns: dict[str, dict[str, None]] = {}
        for cell in self.record["cells"]:
            for part, key in cell["keys"].items():
                if key in self.ledger and self.ledger[key].trains:
                    columns.setdefault(self.ledger[key].kind, {})[KEY_PREFIX + part] = None
        return {kind: list(found) for kind, found in columns.items()}


def gather(store: Store, record: Mapping[str, Any], baseline: str | None = None) -> Results:
    """Read a sweep from the store and compute its statistics.

    Args:
        store: where the artifacts are.
        record: of the sweep.
        baseline: the defense to compare the others with; None is plain training, where the sweep has it.

    Raises:
        ConfigError: the sweep has no such defense.
        StoreError: a file of the store cannot be read.
    """
    grades = read_grades(store, grading_keys(record))
    ledger = load_stage_records(store, record)
    rows = _beside_targets(load_rows(store, record, grades=grades, ledger=ledger), ledger)
    lines = conditions_of(rows)
    means = summarise(rows, grades)
    if baseline is None and PLAIN in set(rows["defense"]):
        baseline = PLAIN
    best = frozenset(best_lines(lines, means, grades))
    comparisons = tuple(against_baseline(lines, grades, baseline)) if baseline is not None else ()
    return Results(
        store=store,
        record=record,
        ledger=ledger,
        grades=grades,
        rows=rows,
        lines=lines,
        means=means,
        baseline=baseline,
        comparisons=comparisons,
        left_out=left_out(lines, condition_names(means, rows), baseline, comparisons) if baseline is not None else (),
        best=best,
        paper_tables=paper_tables(Evidence(rows, lines, means, grades, best)),
    )


def _beside_targets(rows: DataFrame, ledger: Mapping[str, StageRecord]) -> DataFrame:
    """Return the rows with published numbers beside them, if any row meets the conditions of one."""
    marked = mark(rows, read(), lambda key: flatten(ledger[key].spec), by=telling(rows))
    return marked if (marked["target"] != "").any() else rows
