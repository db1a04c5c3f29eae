"""Final answers, letters and equality of mathematics, by hand."""

import csv
import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from harness.corpora.examples import Example
from harness.corpora.final_answer import final_answer
from harness.corpora.formats import Format
from harness.corpora.sources import Source
from harness.engine.identity import payload_of
from harness.errors import ConfigError
from harness.tasks.gpqa import Gpqa, Questions, letter
from harness.tasks.gsm8k import Gsm8k
from harness.tasks.mathematics import Mathematics

NOTHING = Source(id="nothing", file="nothing", format=Format.JSONL)
USER = Gsm8k(train_source=NOTHING, test_source=NOTHING)
compares = pytest.mark.skipif(
    find_spec("math_verify") is None and not os.environ.get("HARNESS_CI"),
    reason="math-verify is not installed (pip install 'harness[math]')",
)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so \boxed{12}", "12"),
        (r"first \boxed{3}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"Answer: 7, that is \boxed{8}", "8"),
        (r"\boxed{3} and then \boxed{4 was cut", "3"),
        (r"the set is \boxed{\{1, 2\}}", r"\{1, 2\}"),
        ("Answer: 41\nno, Answer: 42 ", "42"),
        ("Final Answer: 5.", "5"),
        ("the answer is: 5", None),
        ("Answer:", None),
        ("no idea", None),
        ("", None),
    ],
)
def test_final_answer_is_the_last_box_or_what_follows_the_last_mark(text: str, found: str | None) -> None:
    assert final_answer(text) == found


@pytest.mark.parametrize(
    ("answer", "chosen"),
    [
        ("B", "B"),
        (r"because \boxed{C}", "C"),
        (r"\boxed{\text{D}}", "D"),
        ("Answer: (b)", "B"),
        ("Answer: **A**", "A"),
        ("Answer: D) the last one", "D"),
        ("Answer: C\nas shown above", "C"),
        ("Answer: A pendulum swings", None),
        ("Answer: E", None),
        ("Because", None),
        ("", None),
    ],
)
def test_letter_is_read_where_it_stands_alone(answer: str, chosen: str | None) -> None:
    assert letter(answer) == chosen


def test_answer_without_a_letter_is_wrong_even_where_a_is_right() -> None:
    task = Gpqa(user=USER, source=NOTHING)

    scores = task.grade([Example("", "A")] * 3, ["A", "B", "I do not know"])

    assert [score.value for score in scores] == [1.0, 0.0, 0.0]
    assert scores[2].explanation == "no letter, expected A"


def test_choices_are_shuffled_with_a_seed_and_the_letter_is_that_of_the_right_one(written: Path) -> None:
    columns = ["Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"]
    with (written / "rows.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(
            [columns, *([f"question {n}", f"right {n}", f"wrong {n}", f"bad {n}", f"off {n}"] for n in range(40))]
        )
    source = Source(id="rows", file="rows.csv", format=Format.CSV)

    first, again, other = (Questions(source=source, shuffle=seed).examples() for seed in (0, 0, 1))

    assert first == again != other
    for number, row in enumerate(first):
        question, choices = row.instruction.split("\n\n")
        listed = dict(line.split(") ") for line in choices.splitlines())
        assert question == f"question {number}"
        assert list(listed) == ["A", "B", "C", "D"]
        assert set(listed.values()) == {f"{kind} {number}" for kind in ("right", "wrong", "bad", "off")}
        assert listed[row.output] == f"right {number}"
    # Each letter is right in about a quarter of the rows; 40 fair draws give fewer than 3 of one in 2 of 1,000 files.
    assert min(sum(row.output == each for row in first) for each in "ABCD") >= 3


@compares
@pytest.mark.parametrize(
    ("reference", "answer", "value"),
    [
        ("12", r"so it is \boxed{12}", 1.0),
        (r"\frac{1}{2}", r"\boxed{0.5}", 1.0),
        (r"\frac{1}{2}", r"\boxed{\dfrac12}", 1.0),
        (r"\frac{1}{2}", "Answer: $1/2$, the half.", 1.0),
        (r"11\sqrt2", r"\boxed{11\sqrt{2}}", 1.0),
        ("(1,-2)", r"\boxed{(1, -2)}", 1.0),
        ("(1,-2)", r"\boxed{(-2, 1)}", 0.0),
        (r"\text{Evelyn}", r"\boxed{\text{Evelyn}}", 1.0),
        ("204", r"\boxed{025}", 0.0),
        ("25", r"\boxed{025}", 1.0),
        ("5", "Answer: 6", 0.0),
        ("5", r"\boxed{)(}", 0.0),
        ("5", "I do not know", 0.0),
    ],
)
def test_mathematics_compares_values_and_not_their_writing(reference: str, answer: str, value: float) -> None:
    task = Mathematics(user=USER, source=NOTHING)

    (score,) = task.grade([Example("", reference)], [answer])

    assert score.value == value


def test_problems_are_asked_as_they_are_and_an_integer_is_a_reference(written: Path) -> None:
    rows = [{"problem": "Find $x$.", "answer": 204, "solution": "long"}, {"problem": "Find $y$.", "answer": "\\pi"}]
    (written / "rows").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = Mathematics(user=USER, source=Source(id="rows", file="rows", format=Format.JSONL))

    assert task.test.examples() == [Example("Find $x$.", "204"), Example("Find $y$.", "\\pi")]


def test_what_is_asked_does_not_depend_on_the_users_data() -> None:
    other = Gsm8k(train_source=NOTHING, test_source=NOTHING, suffix="think")

    tests = [payload_of(Mathematics(user=user, source=NOTHING).test) for user in (USER, other)]

    assert tests[0] == tests[1]


def test_missing_package_is_named_before_anything_runs_and_when_stored_answers_are_graded(monkeypatch):
    monkeypatch.setattr("harness.tasks.mathematics.find_spec", lambda _: None)
    task = Mathematics(user=USER, source=NOTHING)

    (problem,) = task.test.preflight()

    assert "pip install 'harness[math]'" in str(problem)
    with pytest.raises(ConfigError, match="Math-Verify, which is missing"):
        task.grade([Example("1 + 1", "2")], ["Answer: 2"])
