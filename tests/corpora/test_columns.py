"""Text and labels are what their columns say, in every format, or refused with source, row and column."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest

from harness.corpora.columns import class_of, columns, text, truth
from harness.corpora.formats import Format
from harness.corpora.safety import LabelledPairs, Prompts, RefusalFile
from harness.corpora.sources import Source
from harness.engine.identity import key_of, payload_of
from harness.errors import DataError
from harness.tasks.agnews import AgNewsRows
from harness.tasks.gsm8k import Gsm8kRows
from harness.tasks.sst2 import Sst2Rows

MARK = "\ufeff"


def _source(folder: Path, content: bytes, form: Format, columns: tuple[str, ...] = (), name: str = "rows") -> Source:
    (folder / name).write_bytes(content)
    return Source(id="mine", file=name, format=form, columns=columns)


def _table(rows: list[dict[str, object]], separator: str) -> bytes:
    lines = [list(rows[0]), *(["" if cell is None else str(cell) for cell in row.values()] for row in rows)]
    return "".join(separator.join(line) + "\n" for line in lines).encode()


def _parquet(folder: Path, rows: list[dict[str, object]]) -> bytes:
    pandas.DataFrame(rows).to_parquet(folder / "written")
    return (folder / "written").read_bytes()


@pytest.fixture
def written(data_folder: Path) -> Callable[[list[dict[str, object]], Format], Source]:
    """Write the same rows in any format."""

    def write(rows: list[dict[str, object]], form: Format) -> Source:
        content = {
            Format.JSONL: lambda: "".join(json.dumps(row) + "\n" for row in rows).encode(),
            Format.JSON: lambda: json.dumps(rows).encode(),
            Format.CSV: lambda: _table(rows, ","),
            Format.TSV: lambda: _table(rows, "\t"),
            Format.PARQUET: lambda: _parquet(data_folder, rows),
        }[form]()
        return _source(data_folder, content, form)

    return write


EVERY = [Format.JSONL, Format.JSON, Format.CSV, Format.TSV, Format.PARQUET]


# Truth values


TRUTH_VALUES = [(True, False), (1, 0), ("True", "False"), ("true", "false"), ("TRUE", "FALSE"), ("1", "0")]


# A table has no numbers, and the text 1.0 is not a boolean.
@pytest.mark.parametrize(
    ("form", "safe", "unsafe"),
    [
        *((form, *values) for form in EVERY for values in TRUTH_VALUES),
        *((form, 1.0, 0.0) for form in EVERY if form not in (Format.CSV, Format.TSV)),
    ],
)
def test_truth_values_of_every_format_are_read(written, form: Format, safe: object, unsafe: object) -> None:
    rows = [
        {"prompt": "p one", "response": "text A", "is_safe": safe},
        {"prompt": "p two", "response": "text B", "is_safe": unsafe},
    ]

    found = LabelledPairs(source=written(rows, form)).safety_rows()

    assert [(row.refusal, row.harmful, row.unsafe) for row in found] == [("text A", "", False), ("", "text B", True)]


@pytest.mark.parametrize("form", EVERY)
@pytest.mark.parametrize("label", ["no", "yes", "", "2", "Falsch", "1.0", " true"])
def test_other_words_are_no_truth_values(written, form: Format, label: str) -> None:
    rows = [{"prompt": "p", "response": "r", "is_safe": "1"}, {"prompt": "q", "response": "s", "is_safe": label}]

    with pytest.raises(DataError, match=r"`mine`: row 2, column `is_safe`: .*expected true, false, 1 or 0"):
        LabelledPairs(source=written(rows, form)).safety_rows()


@pytest.mark.parametrize("form", [Format.JSONL, Format.JSON, Format.PARQUET])
@pytest.mark.parametrize("label", [None, float("nan"), 2, 0.5])
def test_nulls_and_other_numbers_are_no_truth_values(written, form: Format, label: object) -> None:
    rows = [{"prompt": "p", "response": "r", "is_safe": 1}, {"prompt": "q", "response": "s", "is_safe": label}]

    with pytest.raises(DataError, match="row 2, column `is_safe`"):
        LabelledPairs(source=written(rows, form)).safety_rows()


@pytest.mark.parametrize("form", [Format.JSONL, Format.CSV])
def test_refusal_file_reads_is_safe_and_may_lack_it(written, form: Format) -> None:
    row = {"prompt": "p", "refusal": "Answer: no", "response": "r"}

    labelled = RefusalFile(source=written([row | {"is_safe": "False"}, row | {"is_safe": "TRUE"}], form)).safety_rows()
    bare = RefusalFile(source=written([row], form)).safety_rows()

    assert [found.unsafe for found in labelled] == [True, False]
    assert [found.unsafe for found in bare] == [True]
    with pytest.raises(DataError, match="row 1, column `is_safe`"):
        RefusalFile(source=written([row | {"is_safe": "perhaps"}], form)).safety_rows()


def test_category_marked_as_false_in_letters_is_no_category(written) -> None:
    row = {"prompt": "p", "response": "r", "is_safe": False, "category": {"fraud": "False", "theft": True, "x": None}}

    (found,) = LabelledPairs(source=written([row], Format.JSONL)).safety_rows()

    assert found.category == "theft"


# Text


@pytest.mark.parametrize("form", [Format.JSONL, Format.JSON, Format.PARQUET])
@pytest.mark.parametrize("value", [None, 12, 1.5, True, float("nan"), ["a"]])
def test_text_that_is_none_is_refused_with_row_and_column(written, form: Format, value: object) -> None:
    source = written([{"sentence": value, "label": 1}], form)

    with pytest.raises(DataError, match=r"`mine`: row 1, column `sentence`: .*expected a text"):
        columns(source, {"sentence": text})


@pytest.mark.parametrize("form", EVERY)
@pytest.mark.parametrize("value", ["", "  ", "\u00a0"])
def test_empty_text_is_refused(written, form: Format, value: str) -> None:
    source = written([{"sentence": "one", "label": "1"}, {"sentence": value, "label": "1"}], form)

    with pytest.raises(DataError, match="row 2, column `sentence`: the text is empty"):
        columns(source, {"sentence": text})


@pytest.mark.parametrize("form", [Format.JSONL, Format.JSON])
def test_lone_surrogate_is_refused_with_its_place(written, form: Format) -> None:
    source = written([{"sentence": "good \ud83d film", "label": 1}], form)

    with pytest.raises(DataError, match=r"row 1, column `sentence`: .*lone surrogate U\+D83D at character 6"):
        columns(source, {"sentence": text})


def test_pair_of_surrogates_is_a_character(data_folder: Path) -> None:
    source = _source(data_folder, b'{"sentence": "good \\ud83d\\ude00 film"}', Format.JSONL)

    assert columns(source, {"sentence": text}) == [("good \U0001f600 film",)]


ROWS_OF = {
    "sst2": (lambda s: Sst2Rows(source=s, instruction="i"), {"sentence": "a", "label": 1}, "sentence"),
    "agnews": (lambda s: AgNewsRows(source=s, instruction="i"), {"text": "a", "label": 1}, "text"),
    "gsm8k question": (lambda s: Gsm8kRows(source=s), {"question": "a", "answer": "#### 1"}, "question"),
    "gsm8k answer": (lambda s: Gsm8kRows(source=s), {"question": "a", "answer": "#### 1"}, "answer"),
}
SAFETY_OF = {
    "prompts": (Prompts, {"prompt": "a"}, "prompt"),
    "pairs prompt": (LabelledPairs, {"prompt": "a", "response": "b", "is_safe": True}, "prompt"),
    "pairs response": (LabelledPairs, {"prompt": "a", "response": "b", "is_safe": True}, "response"),
    "refusals prompt": (RefusalFile, {"prompt": "a", "response": "b", "refusal": "Answer: c"}, "prompt"),
    "refusals response": (RefusalFile, {"prompt": "a", "response": "b", "refusal": "Answer: c"}, "response"),
    "refusals refusal": (RefusalFile, {"prompt": "a", "response": "b", "refusal": "Answer: c"}, "refusal"),
}


@pytest.mark.parametrize("value", [None, 12, float("nan"), "half \ud83d"])
@pytest.mark.parametrize("kind", ROWS_OF)
def test_task_finds_rows_that_are_no_text_before_anything_runs(written, kind: str, value: object) -> None:
    rows_of, good, column = ROWS_OF[kind]

    assert rows_of(written([good], Format.JSONL)).preflight() == []
    (problem,) = rows_of(written([good, good | {column: value}], Format.JSONL)).preflight()

    assert problem.text.startswith(f"`mine`: row 2, column `{column}`: ")


@pytest.mark.parametrize("value", [None, 12, float("nan"), "half \ud83d"])
@pytest.mark.parametrize("kind", SAFETY_OF)
def test_corpus_refuses_rows_that_are_no_text(written, kind: str, value: object) -> None:
    corpus, good, column = SAFETY_OF[kind]

    assert len(corpus(source=written([good], Format.JSONL)).safety_rows()) == 1
    with pytest.raises(DataError, match=f"`mine`: row 2, column `{column}`: "):
        corpus(source=written([good, good | {column: value}], Format.JSONL)).safety_rows()


def test_label_is_a_whole_number_of_a_class(written) -> None:
    rows: list[dict[str, object]] = [{"label": 1}, {"label": 0}, {"label": None}]
    gap = written(rows, Format.PARQUET)

    assert columns(gap, {"label": class_of(("no", "yes"))}, limit=2) == [("yes",), ("no",)]
    with pytest.raises(DataError, match=r"row 3, column `label`: .*expected 0 to 1"):
        columns(gap, {"label": class_of(("no", "yes"))})
    for wrong in (True, 0.5, "", None, 2):
        with pytest.raises(DataError, match="row 1, column `label`"):
            columns(written([{"label": wrong}], Format.JSONL), {"label": class_of(("no", "yes"))})


# Files


@pytest.mark.parametrize(
    ("form", "content", "names"),
    [
        (Format.TSV, "good film\t1\n", ("sentence", "label:int")),
        (Format.TSV, "sentence\tlabel\ngood film\t1\n", ()),
        (Format.CSV, "good film,1\n", ("sentence", "label:int")),
        (Format.CSV, "sentence,label\ngood film,1\n", ()),
        (Format.CSV, '"sentence","label"\n"good film","1"\n', ()),
        (Format.JSONL, '{"sentence": "good film", "label": 1}\n', ()),
        (Format.JSON, '[{"sentence": "good film", "label": 1}]', ()),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_byte_order_mark_is_no_text(
    data_folder: Path, form: Format, content: str, names: tuple[str, ...], packed: bool
) -> None:
    marked = (MARK + content).encode()
    name = "rows.gz" if packed else "rows"

    source = _source(data_folder, gzip.compress(marked) if packed else marked, form, names, name)

    found = columns(source, {"sentence": text, "label": class_of(("negative", "positive"))})
    assert found == [("good film", "positive")]


def test_byte_order_mark_of_the_original_news_file_is_no_label(data_folder: Path) -> None:
    source = _source(data_folder, (MARK + '"3","Title","Text"\n').encode(), Format.AGNEWS_CSV)

    assert source.records() == [{"text": "Title Text", "label": 2}]


def test_only_formats_that_gave_other_rows_have_another_identity(data_folder: Path) -> None:
    (data_folder / "sources.yaml").write_text(
        "".join(f"{form}: {{file: {{path: rows, format: {form}}}}}\n" for form in Format), encoding="utf-8"
    )
    (data_folder / "rows").write_text("x")
    as_ever = {form: Source(id=form, file="rows", format=form, sha256=Source.parse(form).sha256) for form in Format}

    changed = {form for form in Format if key_of(payload_of(Source.parse(form))) != key_of(payload_of(as_ever[form]))}

    assert changed == {Format.CSV, Format.TSV}


TYPED = [Format.JSONL, Format.JSON, Format.PARQUET]


@pytest.mark.parametrize("form", TYPED)
@pytest.mark.parametrize(
    ("row", "another"),
    [
        ({"is_safe": "False"}, True),
        ({"is_safe": "0"}, True),
        ({"is_safe": float("nan")}, True),
        ({"is_safe": 2}, True),
        ({"is_safe": False, "category": {"fraud": "False"}}, True),
        ({"is_safe": False}, False),
        ({"is_safe": 0}, False),
        ({"is_safe": True, "category": {"fraud": False}}, False),
        ({"is_safe": True, "category": "False"}, False),
        ({"label": "False"}, False),
    ],
)
def test_file_whose_truth_values_once_were_read_otherwise_has_another_identity(
    written, data_folder: Path, form: Format, row: dict[str, object], another: bool
) -> None:
    """What was trained on the first reading of such a file must not be taken for the second."""
    file = written([{"prompt": "p", "response": "r", **row}], form).file
    (data_folder / "sources.yaml").write_text(f"mine: {{file: {{path: {file}, format: {form}}}}}\n", encoding="utf-8")
    source = Source.parse("mine")
    before = Source(id="mine", file=file, format=form, sha256=source.sha256)

    assert (key_of(payload_of(source)) != key_of(payload_of(before))) is another


@pytest.mark.parametrize("form", TYPED)
def test_file_of_ones_own_on_the_hub_has_an_identity_that_does_not_depend_on_the_cache(
    data_folder: Path, form: Format
) -> None:
    (data_folder / "sources.yaml").write_text(
        f"mine: {{hub: {{repo: me/data, revision: {'a' * 40}, path: rows, format: {form}}}}}\n", encoding="utf-8"
    )

    assert Source.parse("mine").reading == 2
    assert Source.parse("beavertails_train").reading is None


@pytest.mark.parametrize(("form", "separator"), [(Format.CSV, ","), (Format.TSV, "\t")])
@pytest.mark.parametrize("blank", ["\n", "\r\n\r\n", "   \n", "\n\n\n"])
def test_blank_lines_of_a_table_are_no_rows(data_folder: Path, form: Format, separator: str, blank: str) -> None:
    content = f"sentence{separator}label\na film{separator}1\n{blank}"

    source = _source(data_folder, content.encode(), form)

    assert source.records() == [{"sentence": "a film", "label": "1"}]


def test_line_with_too_few_cells_is_still_refused(data_folder: Path) -> None:
    source = _source(data_folder, b"sentence,label\na film,1\nanother\n", Format.CSV)

    with pytest.raises(DataError, match="row 2 has 1 columns, not the 2 of sentence, label"):
        source.records()


@pytest.mark.parametrize("form", [Format.CSV, Format.TSV, Format.JSONL])
def test_field_may_be_as_long_as_its_file(written, form: Format) -> None:
    long = "word " * 60_000

    source = written([{"sentence": long + "end", "label": "1"}], form)

    assert columns(source, {"sentence": text}) == [(long + "end",)]


def test_truth_of_numbers_from_other_libraries() -> None:
    assert [truth(value) for value in pandas.Series([True, False]).tolist()] == [True, False]
    with pytest.raises(ValueError, match="not a boolean"):
        truth(float("inf"))
