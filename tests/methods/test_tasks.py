import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.corpora.examples import Example
from harness.corpora.formats import Format
from harness.corpora.sources import Source
from harness.errors import DataError
from harness.protocols import Task
from harness.tasks.agnews import AgNews
from harness.tasks.gsm8k import MARKER, Gsm8k, final_number
from harness.tasks.sst2 import Sst2


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(os.environ.get("HARNESS_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
    if not (folder / "sst2_train.tsv").is_file():
        pytest.skip(f"no data folder: HARNESS_DATA is not set and {folder} holds no SST-2")
    monkeypatch.setenv("HARNESS_DATA", str(folder))


def _source(data: Path, text: str, form: Format = Format.TSV, columns: tuple[str, ...] = ()) -> Source:
    (data / "rows").write_text(text, encoding="utf-8")
    return Source(id="rows", file="rows", format=form, columns=columns)


def _values(task: Task, target: str, answers: list[str]) -> list[float | None]:
    return [grade.value for grade in task.grade([Example("", target)] * len(answers), answers)]


def test_sst2_rows_become_examples(data: Path) -> None:
    source = _source(data, "a fine film\t1\na dull film\t0\na third\t1\n", columns=("sentence", "label:int"))

    task = Sst2(train_source=source, test_source=source, test_rows=2)

    assert [(row.input, row.output) for row in task.train.examples()] == [
        ("a fine film", "positive"),
        ("a dull film", "negative"),
        ("a third", "positive"),
    ]
    assert [row.output for row in task.test.examples()] == ["positive", "negative"]
    assert {row.instruction for row in task.test.examples()} == {task.instruction}


def test_sst2_counts_the_bare_word_only(data: Path) -> None:
    source = _source(data, "")
    task = Sst2(train_source=source, test_source=source)
    answers = ["positive", " Positive\n", "POSITIVE", "positive.", "positive review", "negative", ""]

    assert _values(task, "positive", answers) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert _values(task, "negative", ["Negative", "positive"]) == [1.0, 0.0]


def test_agnews_accepts_the_published_forms(data: Path) -> None:
    source = _source(data, "")
    task = AgNews(train_source=source, test_source=source)

    assert _values(task, "World", ["World", "world", "WORLD", "The World", "Sports"]) == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert _values(task, "Business", ["business ", "Business"]) == [1.0, 1.0]
    assert _values(task, "Sci/Tech", ["Sci/Tech", "sci", "sci/tech", "Sci", "Tech"]) == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_loose_scoring_finds_the_published_forms_anywhere(data: Path) -> None:
    source = _source(data, "")
    sentiment = Sst2(train_source=source, test_source=source, match="contains")
    topic = AgNews(train_source=source, test_source=source, match="contains")

    answers = ["It is positive.", "Positive!", "POSITIVE", "unpositive", "negative", "neither negative nor positive"]
    assert _values(sentiment, "positive", answers) == [1.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    answers = ["Topic: Sci/Tech", "a scientist", "Science", "sport"]
    assert _values(topic, "Sci/Tech", answers) == [1.0, 1.0, 0.0, 0.0]


def test_agnews_original_file_becomes_examples(data: Path) -> None:
    source = _source(data, '"4","A probe","lands, softly"\n"1","Talks","go on"\n', Format.AGNEWS_CSV)

    rows = AgNews(train_source=source, test_source=source).test.examples()

    assert [(row.input, row.output) for row in rows] == [
        ("A probe lands, softly", "Sci/Tech"),
        ("Talks go on", "World"),
    ]


def test_gsm8k_marker_replaces_the_hashes(data: Path) -> None:
    row = {"question": "How many?", "answer": "2+1=<<2+1=3>>3\n#### 3"}
    source = _source(data, json.dumps(row), Format.JSONL)

    (example,) = Gsm8k(train_source=source, test_source=source).train.examples()

    assert example == Example(instruction="How many?", output="2+1=<<2+1=3>>3\nThe final answer is:  3")


def test_gsm8k_suffix_follows_every_question(data: Path) -> None:
    source = _source(data, json.dumps({"question": "How many?", "answer": "#### 3"}), Format.JSONL)
    task = Gsm8k(train_source=source, test_source=source, suffix="\nIn steps.\n")

    assert [row.instruction for row in (*task.train.examples(), *task.test.examples())] == [
        "How many?\nIn steps.\n"
    ] * 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"4 and 5\n{MARKER} 18", 18.0),
        (f"{MARKER}$1,234.50 of 99", 1234.5),
        (f"{MARKER}-7.", -7.0),
        ("first 4, then 12", 12.0),
        ("70,000 dollars", 70000.0),
        (f"4 apples. {MARKER}none", 4.0),
        (f"{MARKER}6 {MARKER}7", 6.0),
        ("the final answer is: 5, or 8", 8.0),
        # What the published rule makes of other ways to write a number, be it right or not.
        (f"{MARKER}\u22125", 5.0),
        (f"{MARKER}-$5", 5.0),
        ("5-3", -3.0),
        ("72 clips, altogether", 72.0),
        ("$29.00", 29.0),
        ("**18**", 18.0),
        ("\\boxed{18}.", 18.0),
        (f"{MARKER}1/2", 1.0),
        (f"{MARKER}.5", 5.0),
        (f"{MARKER}1.5e3", 1.5),
        ("nothing", None),
        ("", None),
    ],
)
def test_gsm8k_final_number_is_read_as_published(text: str, expected: float | None) -> None:
    assert final_number(text) == expected


def test_gsm8k_numbers_are_compared_by_value(data: Path) -> None:
    source = _source(data, "")
    task = Gsm8k(train_source=source, test_source=source)

    assert _values(task, f"so {MARKER} 1,000", ["1000.00", "1,000", "100", "none"]) == [1.0, 1.0, 0.0, 0.0]
    assert _values(task, "no reference", ["4"]) == [None]
    assert task.new_tokens == 200


@pytest.mark.parametrize("kind", [Sst2, AgNews, Gsm8k])
def test_task_settings_out_of_range_are_all_reported(data: Path, kind: type[Sst2]) -> None:
    source = _source(data, "")

    problems = kind(train_source=source, test_source=source, test_rows=0, new_tokens=-1).problems()

    assert [problem.path for problem in problems] == ["test_rows", "new_tokens"]
    assert kind(train_source=source, test_source=source).problems() == []


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("a\t1\n", ("text", "label:int"), "row 1 has the columns text, label; expected sentence, label"),
        ("a\t1\nb\t-1\n", ("sentence", "label:int"), "`-1` is not a label; expected 0 to 1"),
    ],
)
def test_task_rows_of_another_kind_are_refused(data: Path, text: str, columns: tuple[str, ...], message: str) -> None:
    source = _source(data, text, columns=columns)

    with pytest.raises(DataError, match=message):
        Sst2(train_source=source, test_source=source).test.examples()


def test_task_missing_file_is_reported_before_the_run(data: Path) -> None:
    missing = Source(id="sst2_train", file="absent.tsv", format=Format.TSV)
    source = _source(data, "a\t1\n", columns=("sentence", "label:int"))

    problems = Sst2(train_source=missing, test_source=source).train.preflight()

    assert len(problems) == 1
    assert "absent.tsv does not exist" in problems[0].text


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize(
    ("kind", "test", "count", "first"),
    [
        (Sst2, "sst2_validation", 872, "negative"),
        (AgNews, "agnews_test", 1000, "Business"),
        (Gsm8k, "gsm8k_test", 1000, "18"),
    ],
)
def test_task_published_test_rows_score_their_own_references(
    kind: type[Sst2], test: str, count: int, first: str
) -> None:
    source = Source.parse(test)
    task = kind(train_source=source, test_source=source)

    examples = task.test.examples()
    grades = task.grade(examples, [example.output for example in examples])

    assert task.test.preflight() == []
    assert len(examples) == count
    assert examples[0].output.endswith(first)
    assert {grade.value for grade in grades} == {1.0}


@pytest.mark.usefixtures("shared")
def test_task_training_rows_keep_their_published_order() -> None:
    sentiment = Sst2(train_source=Source.parse("sst2_train"), test_source=Source.parse("sst2_validation"))
    arithmetic = Gsm8k(train_source=Source.parse("gsm8k_train"), test_source=Source.parse("gsm8k_test"))

    rows, problems = sentiment.train.examples(), arithmetic.train.examples()

    assert [row.output for row in rows[:4]] == ["positive", "negative", "negative", "positive"]
    assert rows[1].input.startswith("apparently reassembled")
    assert len(problems) == 7473
    assert problems[0].output.endswith("\nThe final answer is:  72")


def test_task_training_rows_do_not_know_how_accuracy_is_read(data: Path) -> None:
    source = _source(data, "")

    few, many = (Sst2(train_source=source, test_source=source, test_rows=rows, new_tokens=rows) for rows in (1, 2))

    assert few.train == many.train
    assert few.test != many.test


def test_tasks_import_without_torch() -> None:
    code = (
        "import sys, harness.tasks.sst2, harness.tasks.agnews, harness.tasks.gsm8k; "
        "sys.exit(bool({'torch', 'transformers', 'pandas'} & set(sys.modules)))"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
