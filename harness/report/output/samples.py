"""Samples of generations, included only on request: by default, text of harmful models does not leave the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.errors import StoreError
from harness.report.data.columns import KEY_PREFIX, records, value
from harness.report.data.conditions import condition_name, varying
from harness.report.stats.results import Results
from harness.stages.generate import read_answers
from harness.stages.grade import graded_samples, read_grades

PROMPTS = 8
"""Number of prompts per cell, each with all its samples; the same prompts in every cell."""
LENGTH = 600
"""Maximum characters of a prompt or a generation."""


class Sample(NamedTuple):
    """A generation for an evaluation prompt; ``harmful`` is None if it could not be judged; ``label`` is its grade."""

    prompt: str
    answer: str
    harmful: bool | None
    label: str
    reason: str


class Answers(NamedTuple):
    """The samples of one cell."""

    cell: str
    defense: str
    samples: Sequence[Sample]


def samples(results: Results) -> list[Answers]:
    """Return the generations of each finished cell for the first evaluation prompts."""
    swept = varying(results.means, results.rows)
    found = []
    for row in records(results.rows):
        answers, grades = row.get(KEY_PREFIX + "harm_answers"), row.get(KEY_PREFIX + "harm")
        if row["missing"] or not isinstance(answers, str) or not isinstance(grades, str):
            continue
        layout = results.store.layout
        generations = _head(read_answers, layout.artifact(results.stage_records[answers].kind, answers))
        graded = _head(read_grades, layout.artifact("grade", grades))
        cell = f"{condition_name(row, swept)}, {row['task']}, p={value(row['ratio'])}, seed {row['seed']}"
        pairs = [_sample(answer, grade) for answer, grade in graded_samples(generations, graded)]
        found.append(Answers(cell, str(row["defense"]), pairs))
    return found


def _sample(answer: dict[str, Any], grade: dict[str, Any]) -> Sample:
    prompt = f"{answer.get('instruction', '')} {answer.get('input', '')}".strip()
    judged = grade.get("value")
    return Sample(
        prompt=prompt[:LENGTH],
        answer=str(answer.get("answer", ""))[:LENGTH],
        harmful=None if judged is None else bool(judged),
        label=_label(judged),
        reason=str(grade.get("reason", "")),
    )


def _label(judged: float | None) -> str:
    if judged is None:
        return "not judged"
    return {0.0: "harmless", 1.0: "harmful"}.get(judged, f"score {judged:.2f}")


def _head(read: Callable[[Path, int], list[dict[str, Any]]], artifact: Path) -> list[dict[str, Any]]:
    try:
        return read(artifact, PROMPTS)
    except (StoreError, OSError, ValueError):
        return []
