"""Samples: answers to browse, for those who ask for them. Text of models that were made harmful stays in the store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.engine.files import opened
from harness.errors import StoreError
from harness.report.data.columns import KEY_PREFIX, records, value
from harness.report.data.conditions import condition_name, varying
from harness.report.stats.results import Results

PROMPTS = 8
"""Answers of each cell; the same prompts in every cell."""
LENGTH = 600
"""Characters of a prompt or an answer."""


class Sample(NamedTuple):
    """An answer to an evaluation prompt; ``harmful`` is None where it could not be judged."""

    prompt: str
    answer: str
    harmful: bool | None
    reason: str


class Answers(NamedTuple):
    """The samples of one cell."""

    cell: str
    defense: str
    samples: Sequence[Sample]


def samples(findings: Results) -> list[Answers]:
    """Return answers of every finished cell to the first evaluation prompts."""
    swept = varying(findings.means, findings.rows)
    found = []
    for row in records(findings.rows):
        answers, grades = row.get(KEY_PREFIX + "harm_answers"), row.get(KEY_PREFIX + "harm")
        if row["missing"] or not isinstance(answers, str) or not isinstance(grades, str):
            continue
        artifacts = findings.store.root / "artifacts"
        said = _head(artifacts / "generate" / answers / "answers.jsonl")
        graded = _head(artifacts / "grade" / grades / "grades.jsonl")
        cell = f"{condition_name(row, swept)}, {row['task']}, p={value(row['ratio'])}, seed {row['seed']}"
        pairs = [_sample(answer, grade) for answer, grade in zip(said, graded, strict=False)]
        found.append(Answers(cell, str(row["defense"]), pairs))
    return found


def _sample(answer: dict[str, Any], grade: dict[str, Any]) -> Sample:
    prompt = f"{answer.get('instruction', '')} {answer.get('input', '')}".strip()
    judged = grade.get("value")
    return Sample(
        prompt=prompt[:LENGTH],
        answer=str(answer.get("answer", ""))[:LENGTH],
        harmful=None if judged is None else bool(judged),
        reason=str(grade.get("reason", "")),
    )


def _head(path: Path) -> list[dict[str, Any]]:
    try:
        with opened(path) as file:
            return [json.loads(line) for line, _ in zip(file, range(PROMPTS), strict=False)]
    except (StoreError, OSError, ValueError):
        return []
