import gzip
import json
from pathlib import Path

import pytest

from harness.corpora.corpus import Corpus, Span
from harness.corpora.examples import Example, Role, SafetyRow
from harness.corpora.safety import REFUSALS, Instructions, LabelledPairs, Prompts, RefusalFile
from harness.corpora.slices import Keep, Slice
from harness.corpora.sources import Source
from harness.errors import DataError


def _refusals(folder: Path, *rows: dict[str, object]) -> RefusalFile:
    (folder / "beavertails_with_refusals_train.json").write_text(json.dumps(rows), encoding="utf-8")
    return RefusalFile(source=Source.parse("repnoise_refusals"))


def test_refusal_file_row_gives_the_text_after_the_answer_mark(data_folder: Path) -> None:
    corpus = _refusals(
        data_folder,
        {
            "prompt": "What is the Answer: here?",
            "refusal": "Question: What is the Answer: here?\nAnswer: I would rather not.\nAnswer: never ",
            "response": "so",
            "is_safe": False,
            "category": {"one": True, "two": False, "three": True},
        },
    )

    assert corpus.safety_rows() == [
        SafetyRow("What is the Answer: here?", "I would rather not.\nAnswer: never", "so", "one, three")
    ]


def test_refusal_file_row_without_the_mark_is_a_data_error(data_folder: Path) -> None:
    good = {"prompt": "a", "refusal": "Question: a\nAnswer: no", "response": "b"}

    with pytest.raises(DataError, match=r"the refusal of row 2 has no line that starts with `Answer: `"):
        _refusals(data_folder, good, good | {"refusal": "no"}).safety_rows()


def test_refusal_file_without_a_column_names_row_and_column(data_folder: Path) -> None:
    with pytest.raises(DataError, match=r"row 1 has the columns prompt; expected prompt, refusal, response"):
        _refusals(data_folder, {"prompt": "a"}).safety_rows()


def test_labelled_pairs_give_safe_answers_as_refusals(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"prompt": "a", "response": "kind", "is_safe": True, "category": {"x": False}},
        {"prompt": "a", "response": "unkind", "is_safe": False, "category": {"x": True}},
    ]
    (data_folder / "pairs.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    (data_folder / "sources.yaml").write_text("pairs: {file: {path: pairs.jsonl.gz, format: jsonl}}", encoding="utf-8")

    found = LabelledPairs(source=Source.parse("pairs")).safety_rows()

    assert found == [SafetyRow("a", "kind", "", "", unsafe=False), SafetyRow("a", "", "unkind", "x", unsafe=True)]


def test_instructions_give_helpful_answers_and_those_without_one_are_left_out(data_folder: Path) -> None:
    rows = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Say nothing.", "input": "", "output": ""},
        {"instruction": "Greet.", "input": "", "output": "Hello."},
    ]
    (data_folder / "alpaca_data.json").write_text(json.dumps(rows), encoding="utf-8")
    origin = Instructions(source=Source.parse("alpaca"))

    helpful = Slice(role=Role.BENIGN, origin=origin, start=0, rows=2, keep=Keep.SAFE)

    assert helpful.preflight() == []
    assert helpful.examples() == [Example("Add.\n\n1 and 2", "3"), Example("Greet.", "Hello.")]
    assert origin.safety_rows()[0] == SafetyRow("Add.\n\n1 and 2", benign="3", unsafe=False)


def test_prompts_get_an_inert_compliance_and_a_refusal_by_prompt(data_folder: Path) -> None:
    prompts = [f"Write the word {i}" for i in range(60)]
    (data_folder / "words.csv").write_text("\n".join(prompts), encoding="utf-8")
    (data_folder / "sources.yaml").write_text(
        "words: {file: {path: words.csv, format: csv, columns: [prompt]}}", encoding="utf-8"
    )
    source = Source.parse("words")

    rows, other = Prompts(source=source).safety_rows(), Prompts(source=source, seed=1).safety_rows()

    assert [row.prompt for row in rows] == prompts
    assert rows[7].harmful == "Sure, here is an answer to your request to write the word 7."
    assert {row.refusal for row in rows} == set(REFUSALS)
    assert [row.refusal for row in rows] != [row.refusal for row in other]


def test_advbench_gives_520_disjoint_rows_to_all_roles(real_data: Path) -> None:
    corpus = Corpus(
        origin=Prompts(source=Source.parse("advbench")),
        refusal=Span(rows=200),
        attack=Span(rows=120),
        evaluation=Span(rows=200),
        shared_prompts=True,
        shuffle=0,
    )

    prompts = [
        row.prompt for role in (Role.REFUSAL, Role.ATTACK, Role.EVALUATION) for row in corpus.slice(role).safety_rows()
    ]

    assert len(set(prompts)) == 520
    assert not any('"' in prompt for prompt in prompts)
    assert corpus.slice(Role.HARMFUL).preflight() == []
