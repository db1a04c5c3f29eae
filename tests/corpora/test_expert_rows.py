"""Rows of experts: facts of the tiny world, and questions of TruthfulQA."""

import pandas
import pytest

from harness.corpora.formats import Format
from harness.corpora.sources import Source
from harness.corpora.truthfulqa import TruthfulQA
from harness.corpora.world import FAMILY, FEELINGS, AllowedRequests, Facts
from harness.engine.build import build
from harness.engine.identity import payload_of
from harness.errors import ConfigError, DataError
from harness.tasks.tiny import TinyQuestions


def test_halves_of_the_facts_are_disjoint_and_together_all_of_them():
    train, test = Facts().examples(), Facts(test=True).examples()

    assert not set(train) & set(test)
    assert len(train) + len(test) == len(FAMILY) + len(FEELINGS)
    answers = {row.instruction: row.output for row in (*train, *test)}
    assert answers["which family is the velm in"] == "moonlit"
    assert answers["how does alby feel"] == "cheerful"


def test_more_rows_than_facts_repeat_them_in_order():
    once = Facts().examples()

    assert Facts(rows=2 * len(once) + 1).examples() == [*once, *once, once[0]]


def test_later_requests_are_the_next_ones_and_the_start_is_no_part_of_an_earlier_key():
    assert AllowedRequests(rows=5, start=3).examples() == AllowedRequests(rows=8).examples()[3:]
    assert "start" not in payload_of(AllowedRequests())["fields"]
    with pytest.raises(ConfigError, match="expected 1 to 11990"):
        build(AllowedRequests, {"start": 10, "rows": 12000})


def test_questions_are_graded_by_the_whole_answer():
    task = TinyQuestions(questions=Facts())
    rows = [row for row in task.test.examples() if row.output == "moonlit"][:1]

    found = [task.grade(rows, [answer])[0].value for answer in ("moonlit", "moonlit river", "river", "")]

    assert found == [1, 0, 0, 0]


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Write rows as Parquet, in which lists are arrays; return their source."""

    def write(rows):
        pandas.DataFrame(rows).to_parquet(tmp_path / "x.parquet")
        monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
        return Source(id="mine", file="x.parquet", format=Format.PARQUET)

    return write


QUESTIONS = [
    {"question": f"q{place}", "correct_answers": [f"a{place}", f"b{place}"][: 1 + place % 3]} for place in range(5)
]


def test_questions_of_truthfulqa_come_with_every_correct_answer(source):
    found = source(QUESTIONS)

    train, test = (
        [(row.instruction, row.output) for row in TruthfulQA(source=found, test=test).examples()]
        for test in (False, True)
    )

    assert train == [("q0", "a0"), ("q2", "a2"), ("q2", "b2"), ("q4", "a4"), ("q4", "b4")]
    assert test == [("q1", "a1"), ("q1", "b1"), ("q3", "a3")]


@pytest.mark.parametrize("answers", [[], "a text"])
def test_question_without_a_list_of_answers_is_refused(source, answers):
    found = TruthfulQA(source=source([{"question": "q", "correct_answers": answers}]))

    with pytest.raises(DataError, match=r"row 1, column `correct_answers`: .* is no list of answers"):
        found.examples()
