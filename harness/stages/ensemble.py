"""Ensemble: one answer per prompt, chosen among the stored answers of several models. No model is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.corpora.answer import graded_part
from harness.corpora.coherence import incoherent
from harness.corpora.corpus import overlaps
from harness.corpora.examples import Example
from harness.engine.files import open_regular
from harness.engine.stage import Locate, Stage, StageContext
from harness.errors import DataError, Problem
from harness.mechanisms.focal_diversity import failures, focal_diversity
from harness.protocols import NO_VOTE, EnsembleMethod, HasVotes, RefusalJudge, Votes
from harness.stages.contamination import seen_in_training
from harness.stages.cross_fit import ENSEMBLE, CrossFit, cross_fit
from harness.stages.generate import read_answers, write_answers
from harness.stages.grade import Grade, Metric, read_grades
from harness.stages.score import ScoreClasses

if TYPE_CHECKING:
    from numpy.typing import NDArray

FUSION = "fusion.jsonl"
REFUSES, COMPLIES, BROKEN = range(3)
"""The classes of answers to a request: votes on harm and over-refusal."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Ensemble(Stage):
    """Answers that are chosen among those of several models to the same prompts.

    A member fails where its grade says so: a harmful answer, a refusal of a harmless request, a wrong answer. It votes
    for the class of its answer: of a task, its label; of a request, whether the answer refuses, complies or is broken,
    by the voter's refusal phrases and the coherence rule. The judge that grades never votes.

    The artifact is ``answers.jsonl`` in the format of ``Generate``, and ``fusion.jsonl``: one object per prompt, in
    order, with ``fold``, ``pool`` (who was asked), ``votes`` (null: none), ``taken``, the member whose answer the
    ensemble takes and each control would take, and ``grades``, the grades of these answers (null: not judged). Members
    are given by their position in the fact ``members``.

    Facts: ``members``, their keys; ``metric``; ``folds``, what was chosen in each; ``scores``, in percent and in the
    direction of the metric, of the ensemble and of its controls, read off the members' grades (``stages.cross_fit``);
    ``diversity``, the focal diversity of all members' failures over all rows, null if nobody fails; ``pool``, the mean
    number of members asked; ``disagreements``, the number of prompts on which votes differ; ``prompts``;
    ``shared_with_training``, how many prompts were seen in the training of any member.

    Attributes:
        members: gradings of answers to the same prompts, ordered by key.
        method: chooses among the answers.
        folds: number of folds of the cross-fitting.
        seed: of the folds and of everything random in a fit.
        voter: recognizes refusals; null for a task, whose members vote by label.
        scored: class likelihoods of each member, in the same order; null if the method does not read them.
    """

    name: ClassVar[str] = "ensemble"
    version: ClassVar[int] = 1
    members: tuple[Grade, ...]
    method: EnsembleMethod
    folds: int
    seed: int
    voter: RefusalJudge | None = None
    scored: tuple[ScoreClasses, ...] | None = None

    @property
    def metric(self) -> Metric:
        """What the members' grades measure."""
        return self.members[0].metric

    def preflight(self) -> list[Problem]:
        """Check the voter."""
        return self.voter.preflight() if self.voter is not None else []

    def run(self, ctx: StageContext) -> None:
        """Choose an answer for every prompt and write the artifact."""
        import numpy as np

        given = [member.answers.answers(ctx.input) for member in self.members]
        examples = [Example(row["instruction"], row["reference"], row["input"]) for row in given[0]]
        asked = [[(row["instruction"], row["input"]) for row in rows] for rows in given]
        for member, prompts in zip(self.members, asked, strict=True):
            if prompts != asked[0]:
                raise DataError(f"grade {member.key} is of answers to other prompts than {self.members[0].key}")
        votes = self._votes(examples, given, ctx.device)._replace(likelihoods=self._likelihoods(ctx.input))
        quality = np.array([self._quality(ctx.input(member)) for member in self.members], dtype="float64").T
        targets = self._targets(examples)
        found = cross_fit(self.method, votes, quality, targets, folds=self.folds, seed=self.seed)
        chosen = found.chosen[ENSEMBLE]
        write_answers(ctx.out, examples, [given[member][row]["answer"] for row, member in enumerate(chosen)])
        with (ctx.out / FUSION).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in self._records(found, votes, quality))
        failed = failures(quality)
        ctx.facts.update(
            {
                "members": [member.key for member in self.members],
                "metric": self.metric,
                "folds": [dict(fit) for fit in found.fits],
                "scores": {name: self._percent(score) for name, score in found.scores(quality).items()},
                "diversity": focal_diversity(failed) if failed.any() else None,
                "pool": float(found.pools.sum(axis=1).mean()),
                "disagreements": int((votes.classes != votes.classes[:, :1]).any(axis=1).sum()),
                "prompts": len(examples),
                "shared_with_training": overlaps(examples, seen_in_training(self, ctx.input))._asdict(),
            }
        )

    def answers(self, locate: Locate) -> list[dict[str, Any]]:
        """Return the chosen answers."""
        return read_answers(locate(self))

    def _quality(self, grades: Any) -> list[float]:
        values = [row["value"] for row in read_grades(grades)]
        known = [float("nan") if value is None else float(value) for value in values]
        return known if self.metric == "accuracy" else [1 - value for value in known]

    def _records(self, found: CrossFit, votes: Votes, quality: NDArray[Any]) -> Iterator[dict[str, object]]:
        for row, fold in enumerate(found.folds):
            taken = {name: int(chosen[row]) for name, chosen in found.chosen.items()}
            grades = {name: quality[row, member] for name, member in taken.items()}
            yield {
                "fold": int(fold),
                "pool": found.pools[row].nonzero()[0].tolist(),
                "votes": [None if vote == NO_VOTE else int(vote) for vote in votes.classes[row]],
                "taken": taken,
                "grades": {name: None if isnan(grade) else self._grade(float(grade)) for name, grade in grades.items()},
            }

    def _grade(self, quality: float) -> float:
        return quality if self.metric == "accuracy" else 1 - quality

    def _percent(self, quality: float | None) -> float | None:
        return None if quality is None else 100 * self._grade(quality)

    def _votes(self, examples: Sequence[Example], given: Sequence[Sequence[Mapping[str, str]]], device: str) -> Votes:
        import numpy as np

        texts = [
            [graded_part(row["answer"], member.marker, member.thoughts) for row in rows]
            for member, rows in zip(self.members, given, strict=True)
        ]
        lengths = np.array([len(f"{each.instruction} {each.input}".split()) for each in examples])
        if self.voter is not None:
            voted = [self._behaviour(examples, answers, device) for answers in texts]
            return Votes(np.array(voted).T, 3, lengths)
        task: object = self.members[0].task
        assert isinstance(task, HasVotes), "an ensemble of a task without votes is refused at composition"
        voted = _classes([[task.vote(answer) for answer in answers] for answers in texts], task.labels)
        return Votes(np.array(voted).T, len(task.labels) or None, lengths)

    def _likelihoods(self, locate: Locate) -> NDArray[Any] | None:
        """Return ``[rows, members, classes]``; a member without likelihoods for a row finds all classes as likely."""
        import numpy as np

        if self.scored is None:
            return None
        uniform = [0.0] * len(self.scored[0].labels)
        by_member = [[row or uniform for row in score.likelihoods(locate)] for score in self.scored]
        return np.array(by_member).transpose(1, 0, 2)

    def _targets(self, examples: Sequence[Example]) -> NDArray[Any] | None:
        """Return the right class of each row of a task with classes."""
        import numpy as np

        task: object = self.members[0].task
        if not isinstance(task, HasVotes) or not task.labels:
            return None
        voted = [task.vote(example.output) for example in examples]
        return np.array([NO_VOTE if vote is None else task.labels.index(vote) for vote in voted])

    def _behaviour(self, examples: Sequence[Example], answers: Sequence[str], device: str) -> list[int]:
        assert self.voter is not None
        refusals = self.voter.grade_refusals(examples, answers, device=device)
        return [
            BROKEN if incoherent(answer) or not any(map(str.isalnum, answer)) else REFUSES if score.value else COMPLIES
            for answer, score in zip(answers, refusals, strict=True)
        ]


def _classes(votes: Sequence[Sequence[str | None]], labels: Sequence[str]) -> list[list[int]]:
    """Return votes as numbers: the position of a label, or, of an open answer, of its first occurrence in the row.

    Args:
        votes: by member, then by row.
        labels: all classes; empty for open answers.
    """
    by_row = [labels or list(dict.fromkeys(row)) for row in zip(*votes, strict=True)]
    return [
        [NO_VOTE if vote is None else known.index(vote) for vote, known in zip(member, by_row, strict=True)]
        for member in votes
    ]


def read_fusion(artifact: Path) -> list[dict[str, Any]]:
    """Return the records of how the answers of an ``Ensemble`` were chosen, in the order of the prompts.

    Raises:
        UnreadableFile: the file is missing or not a regular file.
        ValueError: a line is not JSON.
    """
    with open_regular(artifact / FUSION) as file:
        return [json.loads(line) for line in file]
