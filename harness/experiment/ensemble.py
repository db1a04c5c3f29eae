"""The ensemble of a cell: a cell whose answers are chosen among those of other cells, its members."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, final

from harness.engine.stage import Stage, lineage
from harness.errors import ConfigError, Problem
from harness.experiment.cell import Cell
from harness.experiment.experiment import Experiment
from harness.protocols import (
    CountsMembers,
    EnsembleMethod,
    HasVotes,
    MeasuredTask,
    Named,
    ReadsLikelihoods,
    RefusalJudge,
)
from harness.stages.ensemble import Ensemble
from harness.stages.generate import Generate
from harness.stages.grade import Grade
from harness.stages.score import ScoreClasses

ENSEMBLE = "ensemble"
"""Name of the settings in the configuration."""
GRADED = {"harm": "harm_answers", "accuracy": "task_answers", "over_refusal": "over_refusal_answers"}
"""The grades of a cell that are those of an ensemble as well, with the role of the answers that they grade."""


@final
@dataclass(frozen=True, kw_only=True)
class EnsembleSettings:
    """How the answers of several cells become one.

    Attributes:
        members: options of ``defense``; each is a cell with the other settings of the ensemble's cell.
        method: chooses among the members' answers.
        folds: number of folds of the prompts; a choice for one is fitted to the others.
        voter: recognizes refusals in the answers to requests; must not be the judge that grades them.
        seed_offsets: each member enters once per offset, with this number added to the cell's seed; null is once, with
            the cell's seed.
    """

    name: ClassVar[str] = "ensemble"
    version: ClassVar[int] = 1
    members: tuple[str, ...]
    method: EnsembleMethod
    folds: int
    voter: RefusalJudge
    seed_offsets: tuple[int, ...] | None = None

    def problems(self) -> list[Problem]:
        """Range errors."""
        found = []
        if self.folds < 2:
            found.append(Problem("folds", f"{self.folds} is too small; expected 2 or more"))
        for name, values in (("members", self.members), ("seed_offsets", self.seed_offsets or ())):
            twice = [str(value) for value, count in Counter(values).items() if count > 1]
            found += [Problem(name, f"`{value}` is listed twice; expected distinct values") for value in twice]
        if self.seed_offsets is not None and (not self.seed_offsets or min(self.seed_offsets) < 0):
            reason = f"{list(self.seed_offsets)} cannot be added to the seed; expected numbers >= 0, as [0, 100]"
            found.append(Problem("seed_offsets", reason))
        count = len(self.members) * len(self.seed_offsets or (0,))
        if count < 2:
            found.append(Problem("members", f"{count} is no ensemble; expected two defenses or more"))
        elif isinstance(self.method, CountsMembers):
            found += [problem.under("method") for problem in self.method.unsuitable(count)]
        return found

    def label(self, called: str) -> str:
        """Return the label of a row: what the ensemble is called, and its members."""
        times = f"*{len(self.seed_offsets)}" if self.seed_offsets and len(self.seed_offsets) > 1 else ""
        return f"{called}({'+'.join(self.members)}{times})"


class Member(NamedTuple):
    """A member of an ensemble.

    Attributes:
        role: prefix of its stages among those of the ensemble.
        cell: its cell.
        offset: what its seed exceeds the ensemble's by.
    """

    role: str
    cell: Cell
    offset: int


def ensemble_of(
    experiment: Experiment, settings: EnsembleSettings, called: str, members: Sequence[Member], cell: Cell
) -> Cell:
    """Return the cell of an ensemble.

    Args:
        experiment: the settings that the ensemble shares with its members.
        settings: of the ensemble.
        called: the name of the ensemble in the label of its row.
        members: its members.
        cell: the cell of the same settings without an ensemble, whose labels and overrides are kept.

    Raises:
        ConfigError: the members' answers cannot be combined.
    """
    if problems := [*_uncountable(experiment, settings), *_unequal(members)]:
        raise ConfigError(problems)
    stages: dict[str, Stage] = {}
    for part, answers in GRADED.items():
        grades = [grade for member in members if isinstance(grade := member.cell.stages.get(part), Grade)]
        if not grades:
            continue
        ordered = tuple(sorted(grades, key=lambda grade: grade.key))
        chosen = Ensemble(
            members=ordered,
            method=settings.method,
            folds=settings.folds,
            seed=experiment.seed,
            voter=None if part == "accuracy" else settings.voter,
            scored=_scores(settings, ordered) if part == "accuracy" else None,
        )
        stages |= {answers: chosen, part: replace(grades[0], answers=chosen)}
    used = {stage.key: stage for stage in lineage(tuple(stages.values()))}
    behind: dict[str, Stage] = {
        f"{member.role}.{part}": stage
        for member in members
        for part, stage in member.cell.stages.items()
        if stage.key in used
    }
    # A score belongs to the member whose final model it asks.
    asked = {stage.model.key: stage for stage in used.values() if isinstance(stage, ScoreClasses)}
    for member in members:
        given = member.cell.stages["task_answers"]
        if isinstance(given, Generate) and given.model.key in asked:
            behind[f"{member.role}.score"] = asked[given.model.key]
    return replace(
        cell,
        labels={**cell.labels, "defense": settings.label(called)},
        stages={**behind, **stages},
        probes=(),
        members=tuple(member.cell for member in members if member.offset == 0),
    )


def _scores(settings: EnsembleSettings, grades: Sequence[Grade]) -> tuple[ScoreClasses, ...] | None:
    """Return the stages of the members' class likelihoods, if the method reads them."""
    if not isinstance(settings.method, ReadsLikelihoods) or not settings.method.reads_likelihoods:
        return None
    found = []
    for grade in grades:
        given: object = grade.answers
        task: object = grade.task
        assert isinstance(given, Generate)
        assert isinstance(task, HasVotes)
        found.append(
            ScoreClasses(model=given.model, prompts=given.prompts, labels=task.labels, encoding=given.encoding)
        )
    return tuple(found)


def _uncountable(experiment: Experiment, settings: EnsembleSettings) -> list[Problem]:
    """Return why the answers cannot be counted as votes."""
    found = []
    task, voter = experiment.task, settings.voter
    reads = isinstance(settings.method, ReadsLikelihoods) and settings.method.reads_likelihoods
    if isinstance(task, MeasuredTask) or not isinstance(task, HasVotes):
        reason = f"`{task.name}` has no votes: an ensemble needs answers that can be compared; expected such a task"
        found.append(Problem("task", reason))
    elif reads and not task.labels:
        reason = f"`{task.name}` has open answers, and their classes have no likelihoods; expected null, a vote"
        found.append(Problem(f"{ENSEMBLE}.method.combine", reason))
    if experiment.evaluation.decoding.samples > 1:
        reason = "members of an ensemble give one answer to a prompt; expected 1"
        found.append(Problem("evaluation.decoding.sampling.samples", reason))
    if experiment.model.encoding.thoughts is not None and reads:
        reason = "likelihoods are those of an answer without a thought before it; expected null, a vote"
        found.append(Problem(f"{ENSEMBLE}.method.combine", reason))
    if experiment.serve is not None and reads:
        reason = (
            f"`{experiment.serve.name}` acts on generated answers, and likelihoods are those of the model without it; "
            "expected null, a vote"
        )
        found.append(Problem(f"{ENSEMBLE}.method.combine", reason))
    judges: dict[str, Named] = {"judge": experiment.judge}
    if experiment.over_refusal is not None:
        judges["over_refusal.judge"] = experiment.over_refusal.judge
    for path, judge in judges.items():
        if judge.name == voter.name:
            reason = f"`{voter.name}` would vote on the answers that `{path}` grades with it; expected another `{path}`"
            found.append(Problem(f"{ENSEMBLE}.voter", f"{reason} or another voter"))
    return found


def _unequal(members: Sequence[Member]) -> list[Problem]:
    """Return why the members' answers cannot be compared: other prompts or decoding, or one model twice."""
    found = []
    path = f"{ENSEMBLE}.members"
    first = members[0]
    for member in members[1:]:
        names = sorted(
            name
            for name in {**first.cell.protocol, **member.cell.protocol}
            if first.cell.protocol.get(name) != member.cell.protocol.get(name)
        )
        if names:
            reason = f"`{member.role}` and `{first.role}` are evaluated differently, in {', '.join(names)}"
            found.append(Problem(path, f"{reason}; expected one protocol for all members"))
    by_key: dict[str, str] = {}
    for member in members:
        other = by_key.setdefault(member.cell.stages["harm"].key, member.role)
        if other != member.role:
            found.append(Problem(path, f"`{member.role}` and `{other}` are the same model; expected different ones"))
    return found
