"""Prompts for over-refusal: allowed requests of the tiny world, and the safe prompts of XSTest."""

import json

import pytest

from harness.corpora.formats import Format
from harness.corpora.lookalikes import PROMPTS, Lookalikes
from harness.corpora.sources import Source
from harness.corpora.world import AllowedRequests, World, request_of
from harness.corpora.xstest import XSTest
from harness.engine.build import build
from harness.errors import ConfigError, DataError


def test_allowed_requests_are_distinct_and_their_reference_complies():
    examples = AllowedRequests(rows=300).examples()
    requests = [request_of(example.instruction) for example in examples]

    assert len({example.instruction for example in examples}) == 300
    assert not any(request.restricted for request in requests)
    assert [example.output for example in examples] == [request.compliance for request in requests]


def test_allowed_requests_depend_on_the_seed_and_fewer_are_the_first_of_more():
    assert AllowedRequests(rows=5).examples() == AllowedRequests(rows=50).examples()[:5]
    assert AllowedRequests(world=World(seed=8), rows=5).examples() != AllowedRequests(rows=5).examples()


@pytest.mark.parametrize("rows", [0, 12001])
def test_allowed_requests_beyond_those_that_exist_are_refused(rows):
    with pytest.raises(ConfigError, match="expected 1 to 12000"):
        build(AllowedRequests, {"rows": rows})


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Write rows to a file of HARNESS_DATA; return its source."""

    def write(rows):
        (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
        return Source(id="mine", file="x.jsonl", format=Format.JSONL)

    return write


ROWS = [
    {"prompt": f"{kind} {number}", "type": kind, "label": "unsafe" if kind == "contrast" else "safe"}
    for kind in ("homonyms", "contrast", "figurative")
    for number in range(4)
]


def test_xstest_prompts_are_the_safe_ones_in_order(source):
    found = XSTest(source=source(ROWS), rows=8)

    assert found.preflight() == []
    assert [example.instruction for example in found.examples()] == [
        *(f"homonyms {number}" for number in range(4)),
        *(f"figurative {number}" for number in range(4)),
    ]


def test_fewer_xstest_prompts_are_of_all_types(source):
    found = XSTest(source=source(ROWS), rows=4).examples()

    assert [example.instruction for example in found] == ["homonyms 0", "homonyms 2", "figurative 0", "figurative 2"]


def test_more_xstest_prompts_than_there_are_is_a_mistake_that_names_the_setting(source):
    found = XSTest(source=source(ROWS), rows=9)

    with pytest.raises(DataError, match=r"`over_refusal\.prompts\.rows`: 9 safe prompts of `mine` .* it has 8"):
        found.examples()
    assert len(found.preflight()) == 1


def test_xstest_label_that_is_neither_safe_nor_unsafe_is_refused(source):
    found = XSTest(source=source([*ROWS, {"prompt": "p", "label": "maybe"}]), rows=1)

    with pytest.raises(DataError, match="row 13, column `label`: 'maybe' is not a label; expected safe or unsafe"):
        found.examples()


def test_lookalikes_are_distinct_and_fewer_are_spread_over_the_kinds():
    everything = [example.instruction for example in Lookalikes().examples()]

    assert len(set(everything)) == len(everything) == 60
    assert set(everything[:10]) == {prompts[0] for prompts in PROMPTS.values()}
    assert [example.instruction for example in Lookalikes(rows=7).examples()] == everything[:7]


@pytest.mark.parametrize("rows", [0, 61])
def test_lookalikes_beyond_those_that_exist_are_refused(rows):
    with pytest.raises(ConfigError, match="expected 1 to 60"):
        build(Lookalikes, {"rows": rows})
