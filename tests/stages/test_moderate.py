"""The guardrail on real stages: counts by hand, the rows that are trained on, and a cell that is left without any."""

import json
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from composed import compose
from test_repair import SMALL

from harness.config.build import cells_of
from harness.corpora.examples import Example, Message, Role, Score
from harness.corpora.template import turn_of
from harness.engine.plan import Plan
from harness.engine.stage import Stage
from harness.engine.store import Store
from harness.local.executor import LocalExecutor
from harness.models.adapter import read
from harness.stages.contamination import seen_in_training
from harness.stages.inputs import MixtureStage
from harness.stages.moderate import Moderate, read_verdicts
from harness.stages.poison import read_mixture, write_mixture


@dataclass(frozen=True, kw_only=True, eq=False)
class Uploaded(Stage):
    """Rows numbered from 0, of which the first ones are the attacker's."""

    name: ClassVar[str] = "uploaded"
    version: ClassVar[int] = 1
    rows: int
    harmful: int

    def preflight(self):
        return []

    def run(self, ctx):
        roles = [Role.ATTACK if number < self.harmful else Role.TASK for number in range(self.rows)]
        write_mixture(ctx.out, [(Example(f"sort {n}", f"row {n}"), role) for n, role in enumerate(roles)])

    def mixture(self, locate):
        return read_mixture(locate(self))


@dataclass(frozen=True, kw_only=True)
class Listed:
    """Scores rows by their number; a row that is not listed is harmless."""

    name: ClassVar[str] = "listed"
    version: ClassVar[int] = 1
    flagged: tuple[int, ...] = ()
    unjudged: tuple[int, ...] = ()
    everything: bool = False

    def preflight(self):
        return []

    def grade(self, examples, answers, *, device):
        assert [example.output for example in examples] == list(answers)
        return [self._score(answer) for answer in answers]

    def _score(self, answer: str) -> Score:
        number = int(answer.split()[1]) if answer.startswith("row ") else -1
        if number in self.unjudged:
            return Score(None, "no verdict")
        flagged = self.everything or number in self.flagged
        return Score(float(flagged), "listed" if flagged else "not listed", {"listed": float(flagged)})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def chain():
    (cell,) = cells_of(compose([*SMALL, "attack_ratio=p20", "finetune.adapter=single"]))
    return cell.stages


def facts_of(store, stage) -> dict[str, Any]:
    assert LocalExecutor().run(Plan.of([stage]), store).complete
    return json.loads((store.path(stage) / "manifest.json").read_text())["facts"]


def moderated(rows: int, harmful: int, **guard) -> Moderate:
    sent: MixtureStage = Uploaded(rows=rows, harmful=harmful)
    return Moderate(sent=sent, guard=Listed(**guard))


def numbers(rows) -> list[int]:
    return [int(example.output.split()[1]) for example, _ in rows]


def test_counts_of_ten_rows_by_hand(store):
    """Rows 0 to 3 are the attacker's; 0, 1 and 5 are flagged, 2 and 7 have no verdict."""
    stage = moderated(10, 4, flagged=(0, 1, 5), unjudged=(2, 7))

    facts = facts_of(store, stage)

    assert facts["sent"] == {"task": 6, "attack": 4}
    assert facts["kept"] == {"task": 5, "attack": 2}
    assert facts["unjudged"] == {"task": 1, "attack": 1}
    assert facts["leakage"] == 0.5
    assert facts["false_positives"] == 1 / 6
    assert facts["notes"] == ["2 of 10 rows could not be judged and were kept"]
    assert numbers(stage.mixture(store.path)) == [2, 3, 4, 6, 7, 8, 9]
    verdicts = read_verdicts(store.path(stage))
    assert [number for number, verdict in enumerate(verdicts) if not verdict["kept"]] == [0, 1, 5]
    assert [verdict["value"] for verdict in verdicts] == [1, 1, None, 0, 0, 1, 0, None, 0, 0]
    assert verdicts[0] == {"role": "attack", "kept": False, "value": 1.0, "reason": "listed", "scores": {"listed": 1.0}}


@pytest.mark.parametrize(
    ("rows", "harmful", "leakage", "false_positives"), [(3, 0, None, 1 / 3), (3, 3, 2 / 3, None), (0, 0, None, None)]
)
def test_share_of_no_rows_is_undefined(store, rows, harmful, leakage, false_positives):
    facts = facts_of(store, moderated(rows, harmful, flagged=(1,)))

    assert (facts["leakage"], facts["false_positives"]) == (leakage, false_positives)
    assert "notes" not in facts


@dataclass(frozen=True, kw_only=True)
class Graded:
    """Gives row n the score n / 10."""

    name: ClassVar[str] = "graded"
    version: ClassVar[int] = 1

    def preflight(self):
        return []

    def grade(self, examples, answers, *, device):
        return [Score(int(answer.split()[1]) / 10, "") for answer in answers]


def test_grades_between_zero_and_one_are_flagged_from_one_half(store):
    stage = Moderate(sent=Uploaded(rows=10, harmful=0), guard=Graded())

    facts_of(store, stage)

    assert numbers(stage.mixture(store.path)) == [0, 1, 2, 3, 4]


def test_user_turn_is_everything_before_the_answer():
    before = (Message("system", "be brief"), Message("user", "hello"), Message("assistant", "hi"))

    assert turn_of(Example("sort", "x")) == Example("sort", "x")
    assert turn_of(Example("sort", "x", "a b")) == Example("sort\n\na b", "x")
    assert turn_of(Example("sort", "x", "a b", before)).instruction == "be brief\n\nhello\n\nhi\n\nsort\n\na b"


@pytest.mark.slow
def test_fine_tuning_and_contamination_read_the_kept_rows(chain, store):
    guard = Moderate(sent=Uploaded(rows=20, harmful=8), guard=Listed(flagged=(0, 1, 2, 3, 4, 5, 9)))
    tuned = replace(chain["finetune"], mixture=guard)

    facts = facts_of(store, tuned)

    kinds = facts["rows"]["by_kind"]
    assert {kind: counts["sent"] for kind, counts in kinds.items()} == {"harmful": 2, "benign": 11}
    seen = {example.output for example in seen_in_training(tuned, store.path)}
    assert {f"row {number}" for number in range(20)} & seen == {
        f"row {number}" for number in range(20) if number not in (0, 1, 2, 3, 4, 5, 9)
    }


def weights(folder):
    return read(folder / "adapter")[1]


def test_model_without_a_row_to_train_on_is_the_aligned_one(chain, store):
    nothing = Moderate(sent=chain["poison"], guard=Listed(everything=True))
    tuned = replace(chain["finetune"], mixture=nothing)

    facts = facts_of(store, tuned)

    assert facts["notes"] == ["no row was left to train on: the model is the aligned one"]
    assert facts["steps"] == 0
    assert (store.path(tuned) / "metrics.jsonl").read_text() == ""
    aligned, kept = weights(store.path(chain["align"])), weights(store.path(tuned))
    assert aligned.keys() == kept.keys()
    assert all(torch.equal(aligned[name], kept[name]) for name in aligned)
    refusals = chain["align"].refusal.examples()
    assert seen_in_training(tuned, store.path) == refusals


def test_new_adapter_without_a_row_to_train_on_changes_nothing(store):
    (cell,) = cells_of(compose([*SMALL, "finetune.adapter=double"]))
    nothing = Moderate(sent=cell.stages["poison"], guard=Listed(everything=True))
    tuned = replace(cell.stages["finetune"], mixture=nothing)

    facts_of(store, tuned)

    kept = weights(store.path(tuned))
    assert kept
    assert not any(value.any() for name, value in kept.items() if "lora_B" in name)
    assert len(tuned.weights(store.path).merged) == 1


@pytest.mark.slow
@pytest.mark.parametrize("defense", ["panacea", "antidote", "lisa"])
def test_defense_after_the_alignment_leaves_the_aligned_model_alone_without_a_row(store, defense):
    (cell,) = cells_of(compose([*SMALL, f"defense={defense}", "guardrail=tiny", "finetune.adapter=single"]))
    nothing = replace(cell.stages["moderate"], guard=Listed(everything=True), model=None)
    tuned = replace(cell.stages["finetune"], mixture=nothing)
    last = replace(cell.stages["repair"], tuned=tuned) if "repair" in cell.stages else tuned

    facts = facts_of(store, last)

    assert "no row was left to train on" in facts["notes"][0]
    aligned, kept = weights(store.path(cell.stages["align"])), weights(store.path(last))
    assert all(torch.equal(aligned[name], kept[name]) for name in aligned)


class Interrupted(Exception):
    """The guard's machine went away."""


@dataclass(frozen=True, kw_only=True)
class Failing:
    """Fails as long as a file exists."""

    name: ClassVar[str] = "failing"
    version: ClassVar[int] = 1
    file: str

    def preflight(self):
        return []

    def grade(self, examples, answers, *, device):
        from pathlib import Path

        if Path(self.file).exists():
            raise Interrupted
        return [Score(0.0, "") for _ in answers]


def test_moderation_that_failed_runs_again_on_the_stored_rows(store, tmp_path):
    away = tmp_path / "away"
    away.touch()
    stage = Moderate(sent=Uploaded(rows=5, harmful=1), guard=Failing(file=str(away)))

    assert not LocalExecutor().run(Plan.of([stage]), store).complete
    assert store.has(stage.sent)
    assert not store.has(stage)
    away.unlink()
    outcome = LocalExecutor().run(Plan.of([stage]), store)

    assert outcome.complete
    assert numbers(stage.mixture(store.path)) == [0, 1, 2, 3, 4]
    assert stage.sent.key not in outcome.executed
