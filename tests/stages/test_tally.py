"""Rows are counted by kind: how many were sent, dropped for want of room, and cut."""

import json
import logging

import pytest
from composed import compose
from test_repair import SMALL

from harness.config.build import cells_of
from harness.corpora.encode import IGNORED, Encoded, Encoding
from harness.corpora.examples import Example
from harness.corpora.template import Template
from harness.engine.plan import Plan
from harness.engine.store import Store
from harness.local.executor import LocalExecutor
from harness.models.tiny import build_tokenizer
from harness.protocols import Chosen
from harness.stages.tally import choice_facts, mean_by_kind, row_facts, tally
from harness.training.budget import Budget

ROOM = Encoding(template=Template.PLAIN, newline=False, max_length=6)
SHORT, CUT, LONG = Example("take", "it"), Example("take it", "the the the the"), Example("take " * 8, "it")


def test_rows_are_counted_by_kind(caplog):
    examples = [SHORT, LONG, CUT, LONG, SHORT]
    kinds = ["harmful", "benign", "harmful", "benign", "benign"]

    with caplog.at_level(logging.WARNING):
        found = tally(build_tokenizer(), ROOM, examples, kinds)

    assert found.kinds == {
        "harmful": {"sent": 2, "dropped": 0, "cut": 1},
        "benign": {"sent": 3, "dropped": 2, "cut": 0},
    }
    assert found.rows == ROOM.encode_all(build_tokenizer(), examples).rows
    assert next(record.getMessage() for record in caplog.records).startswith("2 of 3 benign examples dropped")


@pytest.mark.parametrize(
    ("batch_size", "steps"), [(2, {"steps": 4, "steps_asked": 6}), (10, {})], ids=["fewer steps", "as many"]
)
def test_steps_are_told_where_dropped_rows_made_them_fewer(batch_size, steps):
    found = tally(build_tokenizer(), ROOM, [SHORT, LONG, CUT, LONG], ["refusal"] * 4)

    facts = row_facts(found, [found.rows[0]], 1, Budget(epochs=2, batch_size=batch_size))

    assert facts == {
        "trained": 3,
        "dropped": 2,
        "by_kind": {"refusal": {"sent": 4, "dropped": 2, "cut": 1}},
        **steps,
    }


def test_manifests_count_rows_by_kind(tmp_path):
    (cell,) = cells_of(compose([*SMALL, "attack.ratio=0.25", "model.encoding.max_length=13"]))
    store, stages = Store(tmp_path), [cell.stages["finetune"]]
    assert LocalExecutor().run(Plan.of(stages), store).complete

    rows, aligned, mixture = (
        json.loads((store.path(cell.stages[part]) / "manifest.json").read_text())["facts"][name]
        for part, name in (("finetune", "rows"), ("align", "rows"), ("poison", "counts"))
    )

    assert {kind: counts["sent"] for kind, counts in rows["by_kind"].items()} == mixture
    assert rows["by_kind"]["benign"]["dropped"] == mixture["benign"], "a note alone has 14 tokens"
    assert rows["by_kind"]["harmful"] == {"sent": mixture["harmful"], "dropped": 0, "cut": mixture["harmful"]}
    assert rows["trained"] == mixture["harmful"]
    assert list(aligned["by_kind"]) == ["refusal"]


def test_choice_is_counted_by_kind_in_examples_and_supervised_tokens():
    rows = [Encoded([1, 2, 3], [IGNORED, 2, 3]), Encoded([1, 2], [IGNORED, 2]), Encoded([1, 4], [IGNORED, 4])]
    masked = Encoded([1, 2, 3], [IGNORED, IGNORED, 3])

    facts = choice_facts(Chosen([(0, masked), (2, rows[2])], {"why": 1}), rows, ["harmful", "harmful", "benign"])

    assert facts == {
        "by_kind": {
            "harmful": {"given": 2, "kept": 1, "tokens_given": 3, "tokens_kept": 1},
            "benign": {"given": 1, "kept": 1, "tokens_given": 1, "tokens_kept": 1},
        },
        "why": 1,
    }


def test_weights_are_averaged_by_kind():
    assert mean_by_kind([0.5, 1.5, 1.0], ["benign", "harmful", "benign"]) == {"benign": 0.75, "harmful": 1.5}
