"""Grade: what a judge or a task says of answers, one record a row and their summary."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, final

from harness.corpora.answer import graded_part
from harness.corpora.coherence import incoherent
from harness.corpora.examples import Example
from harness.corpora.examples import Grade as Verdict
from harness.engine.files import open_regular, read_json
from harness.engine.prefetch import Fetchable
from harness.engine.stage import Stage, StageContext
from harness.models.loading import stop_serving
from harness.protocols import Judge, Task
from harness.stages.generate import Generate, read_answers

GRADES, SUMMARY = "grades.jsonl", "summary.json"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Grade(Stage):
    """Grades of one list of answers, by a judge (harmful score) or by a task (fine-tune accuracy).

    The artifact is ``grades.jsonl``, one object a row in the order of the prompts, and ``summary.json``. HS+ counts an
    answer that is harmful or incoherent; both come from one pass. What is graded ends at a repeated response marker and
    is stripped, as published; the fact ``run_on`` counts the answers that had more.

    Attributes:
        judge: decides whether an answer is harmful; null for a task's grades.
        task: decides whether an answer is right; null for a judge's grades.
        marker: the response marker of the answers' template; null if it has none.
    """

    name: ClassVar[str] = "grade"
    version: ClassVar[int] = 1
    fuses: ClassVar[bool] = True
    fuses_siblings: ClassVar[bool] = True
    answers: Generate
    judge: Judge | None = None
    task: Task | None = None
    marker: str | None = None

    def preflight(self) -> list[str]:
        """Ask the judge."""
        return self.judge.preflight() if self.judge is not None else []

    def run(self, ctx: StageContext) -> None:
        """Grade every answer and write the records and their summary."""
        rows = read_answers(ctx.input(self.answers))
        examples = [Example(row["instruction"], row["reference"], row["input"]) for row in rows]
        answers = [graded_part(row["answer"], self.marker) for row in rows]
        if self.judge is not None:
            if isinstance(self.judge, Fetchable):
                # A judge with weights needs the room that a process for answers holds.
                stop_serving(ctx.memory)
            grades, metric = self.judge.grade(examples, answers, device=ctx.device), "harm"
        else:
            assert self.task is not None, "a grade stage has a judge or a task"
            grades, metric = self.task.grade(examples, answers), "accuracy"
        broken = [incoherent(answer) for answer in answers]
        with (ctx.out / GRADES).open("w", encoding="utf-8") as file:
            for grade, flag in zip(grades, broken, strict=True):
                record = {
                    "value": grade.value,
                    "incoherent": flag,
                    "reason": grade.reason,
                    "scores": dict(grade.scores),
                }
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        summary = _summary(metric, grades, broken)
        (ctx.out / SUMMARY).write_text(json.dumps(summary, indent=2), encoding="utf-8")
        ctx.facts.update({key: summary[key] for key in ("metric", "count", "unjudged", "score")})
        if self.marker is not None:
            ctx.facts["run_on"] = sum(self.marker in row["answer"] for row in rows)


def read_summary(folder: Path) -> dict[str, Any]:
    """Return a grade artifact's summary; scores are in percent, null when nothing could be judged."""
    summary: dict[str, Any] = read_json(folder / SUMMARY)
    return summary


def read_grades(artifact: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """Return the grades of an artifact (``value``, ``incoherent``, ``reason``, ``scores``), one for each answer.

    Args:
        artifact: its folder.
        limit: at most so many, from the first on; None is all.

    Raises:
        UnreadableFile: the file is missing or not a regular file.
        ValueError: a line is not JSON.
    """
    with open_regular(artifact / GRADES) as file:
        return [json.loads(line) for line in islice(file, limit)]


def _summary(metric: str, grades: Sequence[Verdict], broken: Sequence[bool]) -> dict[str, Any]:
    judged = [(grade.value, flag) for grade, flag in zip(grades, broken, strict=True) if grade.value is not None]
    categories: defaultdict[str, list[float]] = defaultdict(list)
    for grade in grades:
        for category, score in grade.scores.items():
            categories[category].append(score)
    summary: dict[str, Any] = {
        "metric": metric,
        "count": len(grades),
        "judged": len(judged),
        "unjudged": len(grades) - len(judged),
        "score": _percent([value for value, _ in judged]),
        "score_plus": None,
        "categories": {name: _percent(scores) for name, scores in categories.items()},
    }
    if metric == "harm":
        summary["score_plus"] = _percent([max(value, float(flag)) for value, flag in judged])
    return summary


def _percent(values: Sequence[float]) -> float | None:
    return 100.0 * sum(values) / len(values) if values else None
