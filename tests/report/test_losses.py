"""Rows that were dropped and prompts that were cut are told in every format."""

import json

import pytest
from fabricated import Fabricator

from harness.errors import ConfigError
from harness.report import report
from harness.report.data.dropped import dropped_in, losses
from harness.report.data.stage_records import StageRecord

DROPPED = {
    "trained": 69,
    "dropped": 131,
    "by_kind": {
        "harmful": {"sent": 20, "dropped": 0, "cut": 19},
        "benign": {"sent": 180, "dropped": 131, "cut": 9},
    },
    "steps": 7,
    "steps_asked": 20,
}
TOLD = "finetune: 131 of 200 rows dropped, 29.0 % harmful instead of 10 %, 7 steps instead of 20"


def _losses(**facts):
    ledger = {part: StageRecord(key=part, kind="any", uses=1, facts=found) for part, found in facts.items()}
    return losses({**{part: part for part in facts}, "missing": "unknown", "none": None}, ledger)


@pytest.fixture
def maker(tmp_path):
    return Fabricator(tmp_path, prompts=20, answers=20)


def _put(maker, cell, part, kind, **facts):
    path = maker.store.root / "artifacts" / kind / cell["keys"][part] / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["facts"] |= facts
    path.write_text(json.dumps(manifest))


def test_dropped_rows_tell_the_ratio_and_the_steps():
    assert _losses(finetune={"rows": DROPPED}) == [TOLD]


def test_dropped_rows_that_change_neither_ratio_nor_steps_are_told_alone():
    even = {
        "by_kind": {"harmful": {"sent": 10, "dropped": 1, "cut": 0}, "benign": {"sent": 90, "dropped": 9, "cut": 0}}
    }
    refusals = {"by_kind": {"refusal": {"sent": 40, "dropped": 3, "cut": 0}}}

    assert _losses(finetune={"rows": even}, align={"rows": refusals}) == [
        "finetune: 10 of 100 rows dropped",
        "align: 3 of 40 rows dropped",
    ]


def test_nothing_is_told_where_nothing_was_lost_or_counted():
    whole = {"by_kind": {"refusal": {"sent": 40, "dropped": 0, "cut": 7}}}

    assert _losses(align={"rows": whole}, finetune={"rows": {"trained": 69, "dropped": 131}}, harm_answers={}) == []
    assert _losses(harm_answers={"prompts": 10, "cut": 0}) == []


def test_cut_prompts_are_told():
    told = _losses(harm_answers={"prompts": 100, "cut": 3}, aligned_task_answers={"prompts": 50, "cut": 50})

    assert told == [
        "3 of 100 evaluation prompts lost their beginning",
        "50 of 50 task prompts of the aligned model lost their beginning",
    ]


@pytest.mark.parametrize(
    ("encoding", "prompt", "certain"),
    [
        ({"template": "plain", "newline": False}, "a" * 18, True),  # "a...a :" and two tokens before it: 22
        ({"template": "plain", "newline": False}, "a" * 19, False),
        ({"template": "plain", "newline": False}, "é" * 10, False),  # two bytes each
        ({"template": "alpaca", "newline": True}, "a", False),  # the template alone is longer
    ],
)
def test_answers_of_an_earlier_version_whose_prompts_may_have_been_cut_are_told(maker, encoding, prompt, certain):
    (cell,) = cells = [maker.cell("sft", 0.1, 0, {})]
    maker.sweep(cells)
    key = cell["keys"]["harm_answers"]
    folder = maker.store.root / "artifacts" / "generate" / key
    rows = [{"instruction": text, "input": "", "reference": "", "answer": ""} for text in (prompt, "")]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {"encoding": encoding, "decoding": {"max_prompt": 22}}
    maker.store.layout.spec(key).parent.mkdir(exist_ok=True)
    maker.store.layout.spec(key).write_text(json.dumps(spec))
    may = "may have lost their beginning, with the tokens that the tokenizer puts there: an earlier version answered"
    _put(maker, cell, "harm_answers", "generate", prompts=2)

    before = report(maker.store.root, None, "table")
    _put(maker, cell, "harm_answers", "generate", cut=0)
    after = report(maker.store.root, None, "table")

    count = 2 if encoding["template"] == "alpaca" else 1
    assert (f"up to {count} of 2 evaluation prompts {may}" in before) is not certain
    assert may not in after


def test_dropped_rows_are_counted_over_cells():
    assert dropped_in(["a; 1 of 2 rows dropped", "1 of 2 rows dropped", "", "b"]) == {"1 of 2 rows dropped": 2}


@pytest.mark.parametrize("form", ["table", "md", "csv", "json", "latex"])
def test_every_format_says_that_a_ratio_is_not_the_one_of_the_table(maker, form):
    cells = [maker.cell("sft", 0.1, seed, {}) for seed in range(2)]
    maker.sweep(cells)
    _put(maker, cells[1], "finetune", "finetune", rows=DROPPED)
    _put(maker, cells[1], "harm_answers", "generate", prompts=20, cut=2)

    text = report(maker.store.root, None, form).replace("\\%", "%")

    assert text.count(TOLD) == 1
    assert form == "latex" or "2 of 20 evaluation prompts lost their beginning" in text


def test_rows_dropped_under_another_protocol_are_in_its_footnote(maker):
    cells = [maker.cell(defense, 0.1, seed, {}) for defense in ("sft", "vaccine") for seed in range(2)]
    cells[-1]["protocol"] = {**cells[-1]["protocol"], "encoding.fields.max_length": 28}
    for cell in cells[:-1]:
        cell["protocol"] = {**cell["protocol"], "encoding.fields.max_length": 256}
    maker.sweep(cells)
    _put(maker, cells[-1], "finetune", "finetune", rows=DROPPED)

    text = report(maker.store.root, None, "table")

    assert f"another protocol than the other rows: encoding.fields.max_length is 28, not 256; {TOLD}." in text
    with pytest.raises(ConfigError, match="131 of 200 rows dropped"):
        report(maker.store.root, None, "table", strict=True)
