"""Rows with thoughts as the authors' builders write them, from tiny files of the same format."""

import json
from pathlib import Path

import pandas
import pytest

from harness.corpora.corpus import Corpus, Span
from harness.corpora.examples import Example, Role, SafetyRow
from harness.corpora.formats import Format
from harness.corpora.slices import Keep
from harness.corpora.sources import Source
from harness.corpora.thought_rows import DirectRefusal, SafeChain
from harness.errors import DataError


def _refusals(folder: Path, *cells: str) -> Source:
    rows = [{"prompt": "not read", "response": f"reply {n}", "refusal": cell} for n, cell in enumerate(cells)]
    (folder / "rows").write_text(json.dumps(rows), encoding="utf-8")
    return Source(id="mine", file="rows", format=Format.JSON)


def _chains(folder: Path, *rows: tuple[str, str, str]) -> Source:
    pandas.DataFrame(rows, columns=["instruction", "response", "label"]).to_parquet(folder / "rows")
    return Source(id="mine", file="rows", format=Format.PARQUET)


def test_direct_refusal_has_one_short_thought_and_the_refusal_behind_the_mark(data_folder: Path) -> None:
    source = _refusals(
        data_folder,
        "Question: how?\nAnswer: No, sorry. ",
        "Question: why?\nAnswer: The Answer: is no.",
        "Question: a\nb\nAnswer: Never.\nAnswer: And again.",
    )

    rows = DirectRefusal(source=source).safety_rows()

    assert [(row.prompt, row.refusal) for row in rows] == [
        ("how?", "Answer: No, sorry."),
        ("why?", "The Answer: is no."),
        ("a\nb", "Answer: Never."),
    ]
    assert {row.thought for row in rows} == {" I should not answer this question!"}
    assert [row.harmful for row in rows] == ["reply 0", "reply 1", "reply 2"]


def test_refusal_file_of_another_kind_is_named_with_its_row(data_folder: Path) -> None:
    source = _refusals(data_folder, "Question: how?\nAnswer: No.", "No.")

    with pytest.raises(DataError, match="the refusal of row 2 has no line that starts with `Answer: `"):
        DirectRefusal(source=source).safety_rows()


def test_safechain_selects_before_it_leaves_out_and_keeps_the_newlines_of_thoughts(data_folder: Path) -> None:
    source = _chains(
        data_folder,
        ("first", "\nHm.\nNo.\n</think>\n\nI will not.", "vanilla_harmful"),
        ("another kind", "Hm.</think>Yes.", "vanilla_benign"),
        ("never ends", "Hm, and so on", "vanilla_harmful"),
        ("third", "Well.</think>Answer: no</think>more", "vanilla_harmful"),
        ("beyond the selection", "Hm.</think>No.", "vanilla_harmful"),
    )

    rows = SafeChain(source=source, first=3).safety_rows()

    assert rows == [
        SafetyRow("first", "Answer: \n\nI will not.", thought="\nHm.\nNo.\n"),
        SafetyRow("third", "Answer: no", thought="\nWell.\n"),
    ]


def test_alignment_reads_thoughts_and_an_attack_none(data_folder: Path) -> None:
    source = _refusals(data_folder, *[f"Question: q{n}\nAnswer: no {n}" for n in range(4)])
    span = {"keep": Keep.ALL, "rows": 2}
    corpus = Corpus(
        origin=DirectRefusal(source=source),
        refusal=Span(**span, start=0),
        attack=Span(**span, start=2),
        evaluation=Span(rows=1, start=0, keep=Keep.UNSAFE),
        evaluation_origin=SafeChain(source=source),
    )

    assert corpus.slice(Role.REFUSAL).examples()[1] == Example(
        "q1", "Answer: no 1", thought=" I should not answer this question!"
    )
    assert corpus.slice(Role.ATTACK).examples() == [Example("q2", "reply 2"), Example("q3", "reply 3")]
