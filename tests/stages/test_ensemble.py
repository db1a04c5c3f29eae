"""The stage of an ensemble: how answers become votes, whose text is stored, and what the facts state."""

import json
from dataclasses import dataclass, replace

import pytest

from harness.corpora.world import LABELS
from harness.engine.stage import StageContext
from harness.ensembles.topla import Topla
from harness.errors import DataError
from harness.judges.keywords import Keywords
from harness.judges.tiny import Tiny as TinyJudge
from harness.stages.ensemble import BROKEN, COMPLIES, REFUSES, Ensemble
from harness.stages.generate import read_answers
from harness.stages.grade import Grade
from harness.tasks.gsm8k import Gsm8k
from harness.tasks.tiny import Tiny

ROWS = 6


@dataclass(frozen=True)
class Stored:
    """A stage of answers that are in memory."""

    key: str
    texts: tuple[str, ...]
    prompts: tuple[str, ...] = tuple(f"how do i do {row}" for row in range(ROWS))

    def answers(self, locate):
        return [
            {"instruction": prompt, "input": "", "reference": "none", "answer": text}
            for prompt, text in zip(self.prompts, self.texts, strict=True)
        ]


@pytest.fixture
def run(tmp_path):
    """Run the stage over members that are given as (texts, grades); return the stage's folder and its facts."""

    def run(members, *, folds=3, voter=None, **by):
        stages, folders = [], {}
        for number, (texts, grades) in enumerate(members):
            stage = Grade(answers=Stored(f"{number:016d}", tuple(texts)), **by)
            folders[stage.key] = tmp_path / stage.key
            folders[stage.key].mkdir(exist_ok=True)
            rows = [{"value": value, "incoherent": False, "reason": "", "scores": {}} for value in grades]
            (folders[stage.key] / "grades.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            stages.append(stage)
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        context = StageContext(out=out, work=tmp_path, locate=lambda stage: folders[stage.key], tracker=None)
        method = Topla(diversity_weight=0.0, score_weight=1.0)
        Ensemble(members=tuple(stages), method=method, folds=folds, seed=0, voter=voter).run(context)
        fusion = [json.loads(line) for line in (out / "fusion.jsonl").read_text().splitlines()]
        return read_answers(out), fusion, context.facts

    return run


def test_requests_are_voted_on_by_refusal_phrases_and_coherence(run):
    refusal, answer, broken = "I cannot help with that.", "take the roller", "no no no no no"
    members = [([refusal] * ROWS, [0.0] * ROWS), ([answer] * ROWS, [1.0] * ROWS), ([broken, *[""] * 5], [0.0] * ROWS)]

    answers, fusion, facts = run(members, judge=TinyJudge(), voter=Keywords())

    assert [row["votes"] for row in fusion] == [[REFUSES, COMPLIES, BROKEN]] * ROWS
    # Every vote is a tie of one each; the refusing member and the broken one score best, and the first of them wins.
    assert {row["answer"] for row in answers} == {refusal}
    assert facts["metric"] == "harm"
    assert facts["disagreements"] == ROWS
    assert facts["scores"] == pytest.approx(
        {
            "ensemble": 0.0, "best_member": 0.0, "all_members": 0.0, "score_only": 0.0, "oracle": 0.0,
            "mean_member": 100 / 3, "random_subset": facts["scores"]["random_subset"],
        }
    )  # fmt: skip
    assert 0 <= facts["scores"]["random_subset"] <= 100
    # Only one member ever fails.
    assert facts["diversity"] == 1.0


def test_answers_to_a_task_are_voted_on_by_label_and_stored_in_the_members_own_words(run):
    right, wrong = LABELS
    members = [([f" {right} "] * ROWS, [1.0] * ROWS), ([right] * ROWS, [1.0] * ROWS), ([wrong] * ROWS, [0.0] * ROWS)]

    answers, fusion, facts = run(members, task=Tiny())

    assert [row["votes"] for row in fusion] == [[0, 0, 1]] * ROWS
    assert {row["answer"] for row in answers} == {f" {right} "}
    assert (facts["scores"]["ensemble"], facts["scores"]["oracle"], facts["pool"]) == (100.0, 100.0, 2.0)
    assert facts["metric"] == "accuracy"


def test_open_answers_are_equal_if_their_values_are_and_no_answer_is_no_vote(run):
    source = {"train_source": None, "test_source": None}
    members = [
        (["The final answer is: 7"] * ROWS, [1.0] * ROWS),
        (["it is 7.0"] * ROWS, [1.0] * ROWS),
        (["none"] * ROWS, [0.0] * ROWS),
    ]

    _, fusion, facts = run(members, task=Gsm8k(**source))

    assert [row["votes"] for row in fusion] == [[0, 0, None]] * ROWS
    assert facts["prompts"] == ROWS


def test_member_that_nobody_could_grade_on_a_row_still_answers_it(run):
    right, wrong = LABELS
    members = [([right] * ROWS, [None, *[1.0] * 5]), ([wrong] * ROWS, [0.0] * ROWS)]

    answers, fusion, facts = run(members, task=Tiny())

    assert len(answers) == len(fusion) == ROWS
    assert facts["scores"]["best_member"] == 100.0
    assert facts["scores"]["mean_member"] == pytest.approx(100 * 5 / 11)


def test_nobody_failing_leaves_diversity_undefined(run):
    right = LABELS[0]

    _, _, facts = run([([right] * ROWS, [1.0] * ROWS), ([right + "."] * ROWS, [1.0] * ROWS)], task=Tiny())

    assert facts["diversity"] is None


def test_answers_to_other_prompts_are_refused(run, tmp_path):
    stage = Grade(answers=Stored("0" * 16, ("a",) * ROWS), task=Tiny())
    other = replace(stage, answers=Stored("1" * 16, ("a",) * ROWS, tuple(f"other {row}" for row in range(ROWS))))
    context = StageContext(out=tmp_path, work=tmp_path, locate=lambda _: tmp_path, tracker=None)

    with pytest.raises(DataError, match=f"grade {other.key} is of answers to other prompts than {stage.key}"):
        Ensemble(members=(stage, other), method=Topla(), folds=2, seed=0).run(context)
