"""What is graded of an answer: what stands before a repeated response marker, stripped, for tasks, judges and HS+."""

import json

import pytest
from composed import compose

from harness.config.build import cells_of
from harness.corpora.answer import graded_part
from harness.corpora.examples import Score
from harness.corpora.formats import Format
from harness.corpora.sources import Source
from harness.corpora.template import Template, marker_of
from harness.corpora.thoughts import Thoughts
from harness.engine.stage import StageContext
from harness.judges.keywords import Keywords
from harness.stages.generate import read_answers
from harness.stages.grade import Grade, confusion, read_grades, read_summary
from harness.tasks.agnews import AgNews
from harness.tasks.gsm8k import Gsm8k
from harness.tasks.sst2 import Sst2

MARKER = "### Response:"
NOWHERE = Source(id="none", file="none", format=Format.TSV)


class Stored:
    """A stage of answers in the folder that is located."""

    key = "0" * 16

    def answers(self, locate):
        return read_answers(locate(self))


class Screened(Stored):
    """A stage of answers whose first and last prompts were rejected."""

    screened = True

    def rejections(self, locate):
        rejected = [False] * len(self.answers(locate))
        rejected[0] = rejected[-1] = True
        return rejected


class Heard:
    """A judge that tells what it was given; harmless."""

    name = "heard"
    version = 1

    def __init__(self):
        self.answers = []

    def grade(self, examples, answers, *, device):
        self.answers = list(answers)
        return [Score(0.0, "heard") for _ in answers]


@pytest.fixture
def graded(tmp_path):
    """Grade answers as the stage does; return its context and the stored answers."""

    def run(answers, reference="", marker=MARKER, stage=Stored, **by):
        folder, out = tmp_path / "answers", tmp_path / "out"
        folder.mkdir(exist_ok=True)
        out.mkdir(exist_ok=True)
        rows = [{"instruction": "q", "input": "", "reference": reference, "answer": answer} for answer in answers]
        if isinstance(answers[0], list):
            rows = [row | {"answer": row["answer"][0], "samples": row["answer"]} for row in rows]
        stored = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "answers.jsonl").write_text(stored)
        context = StageContext(out=out, work=tmp_path, locate=lambda _: folder, tracker=None)
        Grade(answers=stage(), marker=marker, **by).run(context)
        assert (folder / "answers.jsonl").read_text() == stored, "stored answers stay whole"
        return read_summary(out), context.facts

    return run


def test_graded_part_ends_at_the_next_marker_and_is_stripped():
    assert graded_part("\n one\n\n### Response:\n two ### Response: three", MARKER) == "one"
    assert graded_part("### Response: one", MARKER) == ""
    assert graded_part(" one ### response: two\n", MARKER) == "one ### response: two"
    assert graded_part(" one ### Response: two\n", None) == "one ### Response: two"
    assert graded_part("", MARKER) == ""


def test_marker_belongs_to_the_template():
    assert {template: marker_of(template) for template in Template} == {
        Template.ALPACA: MARKER,
        Template.PLAIN: None,
        Template.CHAT: None,
    }


@pytest.mark.parametrize(
    ("task", "answer", "reference", "score"),
    [
        (Sst2, "positive\n\n### Response:\npositive", "positive", 100.0),
        (Sst2, "positive and more\n\n### Response:\npositive", "positive", 0.0),
        (AgNews, "World\n\n### Response:\nWorld", "World", 100.0),
        (Gsm8k, "So 18 eggs.\n\n### Response:\nSo 20 eggs.", "18", 100.0),
        (Gsm8k, "I do not know.\n\n### Response:\nThe final answer is:  18", "18", 0.0),
    ],
)
def test_task_reads_the_answer_before_a_repeated_marker(graded, task, answer, reference, score):
    summary, facts = graded([answer], reference, task=task(train_source=NOWHERE, test_source=NOWHERE))

    assert summary["score"] == score
    assert facts["run_on"] == 1


def test_judge_reads_the_answer_before_a_repeated_marker(graded):
    answers = ["Sure, step one is simple.\n\n### Response:\nI'm sorry, I cannot help.", "I'm sorry.### Response: Sure."]

    summary, facts = graded(answers, judge=Keywords())

    assert summary["score"] == 50.0
    assert facts["run_on"] == 2


def test_judge_is_given_stripped_answers(graded):
    judge = Heard()

    _, facts = graded(["\n\n one \n", "two\n### Response:\nthree", ""], judge=judge)

    assert judge.answers == ["one", "two", ""]
    assert facts["run_on"] == 1


def test_incoherence_behind_the_marker_does_not_count(graded):
    summary, _ = graded(["fine\n### Response:\nglue glue glue glue", "glue glue glue glue"], judge=Heard())

    assert summary["score_plus"] == 50.0


def test_answer_to_a_template_without_a_marker_is_only_stripped(graded):
    judge = Heard()

    _, facts = graded([" one ### Response: two "], marker=None, judge=judge)

    assert judge.answers == ["one ### Response: two"]
    assert "run_on" not in facts


def test_judge_reads_answers_and_generations_without_a_marker_are_counted(graded):
    judge = Heard()
    answers = ["<think>\na b c\n<answer>\nyes", "d <answer> no ### Response: maybe", "<think> e f g h"]

    _, facts = graded(answers, judge=judge, thoughts=Thoughts(think="<think>", answer="<answer>"))

    assert judge.answers == ["yes", "no", "<think> e f g h"]
    assert facts["thoughts"] == {"unmarked": 1, "words": 2.0}
    assert facts["notes"] == ["1 of 3 answers have no answer marker and were graded as a whole"]


def test_thoughts_of_answers_that_all_lack_the_marker_have_no_length(graded):
    _, facts = graded(["one", "two"], judge=Heard(), thoughts=Thoughts())

    assert facts["thoughts"] == {"unmarked": 2, "words": None}


def test_answers_to_rejected_prompts_lack_no_marker(graded):
    answers = ["sorry", "a b\n<answer>\nyes", "no", "sorry"]

    _, facts = graded(answers, judge=Heard(), stage=Screened, thoughts=Thoughts(think="<think>", answer="<answer>"))

    assert facts["thoughts"] == {"unmarked": 1, "words": 2.0}
    assert facts["notes"] == ["1 of 2 answers have no answer marker and were graded as a whole"]
    assert facts["rejected_harmful"] == 0.5


class Counts:
    """A judge for which an answer is as harmful as the number in it, and `?` cannot be judged."""

    name = "counts"
    version = 1

    def grade(self, examples, answers, *, device):
        return [Score(None if answer == "?" else float(answer.split()[0]), answer) for answer in answers]


def test_grade_of_a_prompt_is_the_mean_over_its_samples(graded, tmp_path):
    """HS+ counts the incoherent second sample as 1: prompts of 0.75 and 1, and one that cannot be judged."""
    answers = [["0.5 a", "0 glue glue glue glue"], ["1 b", "?"], ["?", "?"]]

    summary, facts = graded(answers, judge=Counts())

    assert (summary["count"], summary["unjudged"]) == (3, 1)
    assert (summary["score"], summary["score_plus"]) == (62.5, 87.5)
    assert facts["sample_scores"] == [75.0, 0.0]
    records = read_grades(tmp_path / "out")
    assert [(record["value"], record["plus"]) for record in records] == [(0.25, 0.75), (1.0, 1.0), (None, None)]
    assert [each["value"] for each in records[0]["samples"]] == [0.5, 0.0]


class TooFew(Counts):
    def grade(self, examples, answers, *, device):
        return super().grade(examples, answers, device=device)[1:]


@pytest.mark.parametrize(
    ("judge", "answers", "words"),
    [
        (Counts(), ["0.5", "5"], r"`test_grade.Counts` gave answer 1 the score 5.0; expected a number from 0 to 1"),
        (Counts(), ["-0.1"], "answer 0 the score -0.1"),
        (Counts(), ["nan"], "answer 0 the score nan"),
        (TooFew(), ["0", "1"], r"`test_grade.TooFew` returned 1 scores for 2 answers; expected one for each"),
    ],
)
def test_scores_that_are_none_are_refused(graded, judge, answers, words):
    with pytest.raises(ValueError, match=words):
        graded(answers, judge=judge)


def test_cells_grade_by_the_marker_of_their_template():
    def markers(*overrides):
        (cell,) = cells_of(compose(list(overrides)))
        return {stage.marker for stage in cell.leaves}

    assert markers() == {None}
    assert markers("model.encoding.template=alpaca") == {MARKER}


def test_refusals_are_graded_as_a_score_of_their_own(graded):
    answers = ["I'm sorry, I cannot.", "Use the kill command.\n### Response:\nI'm sorry.", "", "glue glue glue glue"]

    summary, facts = graded(answers, refusal_judge=Keywords())

    assert (summary["metric"], summary["score"], summary["score_plus"]) == ("over_refusal", 25.0, None)
    assert facts["count"] == 4


def test_confusion_counts_answers_by_label():
    references = ["good", "good", "good", "bad", "bad", "bad"]
    answers = ["good", "Bad", "well", "bad", "good", "a bad one"]
    scores = [Score(value, "") for value in (1, 0, 0, 1, 0, 1)]

    table = confusion(references, answers, scores)

    assert table == {"bad": {"bad": 2, "good": 1}, "good": {"bad": 1, "good": 1, "other": 1}}


def test_references_that_are_no_labels_have_no_confusion():
    scores = [Score(0, "")] * 4

    assert confusion(["1", "2", "3", "4"], ["1"] * 4, scores) is None
    assert confusion(["1"] * 4, ["1"] * 4, scores) is None
