"""Tidy rows: one per cell of a sweep, with everything that tells it from another and everything that was measured."""

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
    Grading,
)
from harness.report.data.conditions import told_apart
from harness.report.data.dropped import losses
from harness.report.data.scores import Graded, read_grades
from harness.report.data.stage_records import StageRecord, load_stage_records
from harness.report.data.training_protocol import setup_of

if TYPE_CHECKING:
    from pandas import DataFrame


def load_rows(
    store: Store,
    record: Mapping[str, Any],
    *,
    grades: Mapping[str, Graded] | None = None,
    ledger: Mapping[str, StageRecord] | None = None,
) -> DataFrame:
    """Return one row per cell of a sweep; a cell whose grades are not stored yet has a row without scores.

    The columns are the labels, every swept value by its dotted name (and every other setting without which different
    experiments would have one name), scores in percent, counts, what is missing, notes, wall seconds of the cell's
    stages with their prediction, harmful scores by category, the keys of the stages, and the protocol: how the cell
    was evaluated, and how it was trained where the sweep does not vary it.

    Args:
        store: where the grades are.
        record: the record of the sweep.
        grades: what ``read_grades`` returned, if it was called already.
        ledger: what ``load_stage_records`` returned, if it was called already.

    Raises:
        StoreError: a file of the store cannot be read.
    """
    cells = record["cells"]
    grades = read_grades(store, grading_keys(record)) if grades is None else grades
    ledger = load_stage_records(store, record) if ledger is None else ledger
    swept = dict.fromkeys(name for cell in cells for name in cell["swept"] if name not in LABELS)
    stages = dict.fromkeys(name for cell in cells for name in cell["keys"])
    described = [_row(cell, grades, ledger, swept) for cell in cells]
    for row, more in zip(described, told_apart(cells, described, swept, ledger), strict=True):
        row |= {name: value for name, value in more.items() if row.get(name) is None}
        swept |= dict.fromkeys(name for name in more if name != "protocol")
    found = dict.fromkeys(name for row in described for name in row)
    columns = [
        *LABELS,
        *swept,
        *SCORES,
        *COUNTS,
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
    numbers = dict.fromkeys((*SCORES, SECONDS, PREDICTED), "float64")
    return rows.astype(numbers | dict.fromkeys(COUNTS, "Int64"))


def frame_of(described: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> DataFrame:
    """Return rows as a frame in which whole numbers stay whole beside rows that lack one.

    Args:
        described: the rows, by column; None or nothing for what a row lacks.
        columns: their order.
    """
    import pandas as pd

    frame = pd.DataFrame(described, columns=list(columns))
    for name in columns:
        found = [row.get(name) for row in described]
        present = [value for value in found if value is not None]
        # By itself pandas makes floats of them: 1 process becomes 1.0.
        if present and len(present) < len(found) and all(type(value) is int for value in present):
            frame[name] = pd.array(found, dtype="Int64") if all(abs(v) < 2**63 for v in present) else found
    return frame


def grading_keys(record: Mapping[str, Any]) -> list[str]:
    """Return the keys of a sweep's gradings."""
    wanted = (cell["keys"].get(grading.stage) for cell in record["cells"] for grading in GRADINGS)
    return [key for key in dict.fromkeys(wanted) if key is not None]


def _row(
    cell: Mapping[str, Any], grades: Mapping[str, Graded], ledger: Mapping[str, StageRecord], swept: Collection[str]
) -> dict[str, Any]:
    keys = cell["keys"]
    found = setup_of(keys, ledger)
    # A training setting that the sweep varies is a column of its own, and no departure from a protocol; nor is a fresh
    # adapter that is what the aligned one is.
    setup = {name: value for name, value in found.items() if name not in swept and not _follows(name, found, swept)}
    protocol = {name: _scalar(value) for name, value in (setup | dict(cell["protocol"])).items()}
    row: dict[str, Any] = {name: _scalar(value) for name, value in cell["swept"].items()}
    row |= {name: cell["labels"].get(name) for name in LABELS}
    row |= {KEY_PREFIX + name: key for name, key in keys.items()}
    row |= {PROTOCOL_PREFIX + name: value for name, value in protocol.items()}
    row |= _cost([ledger[key] for key in dict.fromkeys(keys.values()) if key is not None and key in ledger])
    missing = []
    notes = [f"memory ran out in {part}: fewer rows at once" for part, key in keys.items() if _shrunk(ledger, key)]
    graded_here = {keys.get(grading.stage) for grading in GRADINGS}
    notes += [
        f"the manifest of {part} {key} cannot be read: what it cost and what it ran on is unknown"
        for part, key in keys.items()
        if key is not None and key not in graded_here and key in ledger and ledger[key].damaged
    ]
    notes += losses(keys, ledger)
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
    """Return the wall seconds of a cell's stages and their prediction; None unless every stage has one."""
    seconds = [entry.seconds for entry in entries]
    predicted = [entry.predicted for entry in entries]
    return {
        SECONDS: None if None in seconds else sum(value for value in seconds if value is not None),
        PREDICTED: None if None in predicted else sum(value for value in predicted if value is not None),
    }


def _shrunk(ledger: Mapping[str, StageRecord], key: str | None) -> bool:
    return key is not None and key in ledger and ledger[key].shrunk


def _scalar(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else value
