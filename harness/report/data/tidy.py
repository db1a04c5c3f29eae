"""Tidy rows: one per cell of a sweep, with its labels, settings and measurements."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.engine.store import Store
from harness.report.data.columns import (
    CATEGORY_PREFIX,
    COUNTS,
    GRADINGS,
    KEY_PREFIX,
    LABELS,
    MISSING,
    NOTES,
    PREDICTED,
    PROTOCOL_PREFIX,
    SCORES,
    SECONDS,
    SHARE_PREFIX,
    Grading,
)
from harness.report.data.conditions import distinguishing_values
from harness.report.data.dropped import dropped_notes
from harness.report.data.judges import JUDGE, judge_labels
from harness.report.data.scores import Graded, read_grades
from harness.report.data.stage_records import StageRecord, load_stage_records
from harness.report.data.training_protocol import training_protocol_of

if TYPE_CHECKING:
    from pandas import DataFrame


def load_rows(
    store: Store,
    record: Mapping[str, Any],
    *,
    grades: Mapping[str, Graded] | None = None,
    stage_records: Mapping[str, StageRecord] | None = None,
) -> DataFrame:
    """Return one row per cell of a sweep; a cell whose grades are not stored yet has a row without scores.

    The columns are the labels, the swept values by dotted name (and other settings that are needed to distinguish
    experiments), scores in percent, counts, shares that stages report, missing grades, notes, measured and predicted
    wall time in seconds of the cell's stages, harmful scores by category, the keys of the stages, and the protocol:
    that of the evaluation, and that of the training without swept settings.

    Args:
        store: the store.
        record: the sweep record.
        grades: as returned by ``read_grades``; read here if None.
        stage_records: as returned by ``load_stage_records``; read here if None.

    Raises:
        StoreError: a file of the store cannot be read.
    """
    cells = record["cells"]
    grades = read_grades(store, grading_keys(record)) if grades is None else grades
    stage_records = load_stage_records(store, record) if stage_records is None else stage_records
    swept = dict.fromkeys(name for cell in cells for name in cell["swept"] if name not in LABELS)
    stages = dict.fromkeys(name for cell in cells for name in cell["keys"])
    described = [_row(cell, grades, stage_records, swept) for cell in cells]
    judges = judge_labels([cell["protocol"] for cell in cells], swept)
    if len(set(judges)) > 1:
        swept |= {JUDGE: None}
        for row, judge in zip(described, judges, strict=True):
            row[JUDGE] = judge
    for row, more in zip(described, distinguishing_values(cells, described, swept, stage_records), strict=True):
        row |= {name: value for name, value in more.items() if row.get(name) is None}
        swept |= dict.fromkeys(name for name in more if name != "protocol")
    found = dict.fromkeys(name for row in described for name in row)
    shares = [name for name in found if name.startswith(SHARE_PREFIX)]
    columns = [
        *LABELS,
        *swept,
        *SCORES,
        *COUNTS,
        *shares,
        MISSING,
        NOTES,
        SECONDS,
        PREDICTED,
        *(name for name in found if name.startswith(CATEGORY_PREFIX)),
        *(KEY_PREFIX + name for name in stages),
        "protocol",
        *(name for name in found if name.startswith(PROTOCOL_PREFIX)),
    ]
    rows = frame_of(described, columns)
    numbers = dict.fromkeys((*SCORES, *shares, SECONDS, PREDICTED), "float64")
    return rows.astype(numbers | dict.fromkeys(COUNTS, "Int64"))


def frame_of(described: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> DataFrame:
    """Return rows as a frame in which integers stay integers even if values are missing.

    Args:
        described: the rows, by column; missing values are None or absent.
        columns: the columns, in order.
    """
    import pandas as pd

    frame = pd.DataFrame(described, columns=list(columns))
    for name in columns:
        found = [row.get(name) for row in described]
        present = [value for value in found if value is not None]
        # By default pandas converts such a column to float: 1 process becomes 1.0.
        if present and len(present) < len(found) and all(type(value) is int for value in present):
            frame[name] = pd.array(found, dtype="Int64") if all(abs(v) < 2**63 for v in present) else found
    return frame


def grading_keys(record: Mapping[str, Any]) -> list[str]:
    """Return the keys of a sweep's grade stages."""
    wanted = (cell["keys"].get(grading.stage) for cell in record["cells"] for grading in GRADINGS)
    return [key for key in dict.fromkeys(wanted) if key is not None]


def _row(
    cell: Mapping[str, Any],
    grades: Mapping[str, Graded],
    stage_records: Mapping[str, StageRecord],
    swept: Collection[str],
) -> dict[str, Any]:
    keys = cell["keys"]
    found = training_protocol_of(keys, stage_records)
    # A swept training setting has its own column and is not part of the protocol; nor is the configuration of a new
    # adapter that equals a swept one of the aligned adapter.
    setup = {name: value for name, value in found.items() if name not in swept and not _follows(name, found, swept)}
    protocol = {name: _scalar(value) for name, value in (setup | dict(cell["protocol"])).items()}
    row: dict[str, Any] = {name: _scalar(value) for name, value in cell["swept"].items()}
    row |= {name: cell["labels"].get(name) for name in LABELS}
    row |= {KEY_PREFIX + name: key for name, key in keys.items()}
    row |= {PROTOCOL_PREFIX + name: value for name, value in protocol.items()}
    stages = {part: stage_records[key] for part, key in keys.items() if key is not None and key in stage_records}
    row |= {SHARE_PREFIX + name: share for stage in stages.values() for name, share in stage.shares.items()}
    row |= _cost(list({stage.key: stage for stage in stages.values()}.values()))
    missing = []
    notes = [
        f"out of memory in {part}: rerun with smaller micro-batches"
        for part, key in keys.items()
        if _shrunk(stage_records, key)
    ]
    grade_keys = {keys.get(grading.stage) for grading in GRADINGS}
    notes += [
        f"the manifest of {part} {key} cannot be read: its cost and provenance are unknown"
        for part, key in keys.items()
        if key is not None and key not in grade_keys and key in stage_records and stage_records[key].damaged
    ]
    notes += [f"{part}: {note}" for part, stage in stages.items() for note in stage.notes]
    notes += dropped_notes(keys, stage_records)
    for grading in GRADINGS:
        key = keys.get(grading.stage)
        if key is None:
            continue
        graded = grades[key]
        if not graded.summary:
            missing.append(grading.stage)
            notes += [graded.trouble] if graded.trouble else []
            continue
        row |= _scores(grading, graded.summary)
    return row | {MISSING: ", ".join(missing), NOTES: "; ".join(notes)}


def _follows(name: str, setup: Mapping[str, Any], swept: Collection[str]) -> bool:
    aligned = name.replace("finetune.fresh.", "align.adapter.")
    return aligned != name and aligned in swept and setup[name] == setup.get(aligned)


def _scores(grading: Grading, summary: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        grading.score: summary["score"],
        f"{grading.score}_count": summary["count"],
        f"{grading.score}_unjudged": summary["unjudged"],
    }
    if grading.score_plus is not None:
        found[grading.score_plus] = summary.get("score_plus")
    if grading.stage == "harm":
        found |= {CATEGORY_PREFIX + name: score for name, score in (summary.get("categories") or {}).items()}
    return found


def _cost(entries: Sequence[StageRecord]) -> dict[str, float | None]:
    """Return the sums of measured and predicted wall seconds of a cell's stages; None unless all stages have them."""
    seconds = [entry.seconds for entry in entries]
    predicted = [entry.predicted for entry in entries]
    return {
        SECONDS: None if None in seconds else sum(value for value in seconds if value is not None),
        PREDICTED: None if None in predicted else sum(value for value in predicted if value is not None),
    }


def _shrunk(stage_records: Mapping[str, StageRecord], key: str | None) -> bool:
    return key is not None and key in stage_records and stage_records[key].shrunk


def _scalar(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else value
