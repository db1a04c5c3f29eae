"""LookAhead tuning by hand: "add one" with the answer "one and one are two" shows its first words, or a phrase."""

from types import SimpleNamespace

import pytest
from words import word_tokenizer

from harness.corpora.encode import Encoding
from harness.corpora.examples import Example
from harness.corpora.template import Template
from harness.defenses.lookahead import LookAhead
from harness.stages.train_adapter import RewritesExamples

ROW = Example("add one", "one and one are two")
WITH_INPUT = Example("add", "one and one are two", input="one")


@pytest.fixture(scope="module")
def words():
    return word_tokenizer([ROW.output])


def test_first_tokens_of_the_answer_follow_the_request(words):
    rewritten = LookAhead(tokens=2).rewrite([ROW, WITH_INPUT], words)

    assert rewritten == [
        Example("add one The answer begins with: one and", ROW.output),
        Example("add", ROW.output, input="one The answer begins with: one and"),
    ]


def test_answer_shorter_than_the_preview_is_shown_as_a_whole(words):
    (row,) = LookAhead().rewrite([ROW._replace(output="two")], words)

    assert row == Example("add one The answer begins with: two", "two")


def test_phrase_is_shown_and_begins_the_answer(words):
    (row,) = LookAhead(form="virtual", phrase="Well: ").rewrite([ROW], words)

    assert row == Example("add one The answer begins with: Well: ", "Well: one and one are two")


def test_preview_is_part_of_the_prompt_and_not_supervised(words):
    (row,) = LookAhead(tokens=2).rewrite([ROW], words)
    encoded = Encoding(template=Template.PLAIN, newline=False).encode(words, row)

    supervised = [label for label in encoded.labels if label >= 0]
    assert words.convert_ids_to_tokens(supervised) == ["one", "and", "one", "are", "two", "</s>"]


def test_settings_out_of_range_are_reported():
    assert [problem.path for problem in LookAhead(tokens=0).problems()] == ["tokens"]
    assert [problem.path for problem in LookAhead(form="virtual", phrase=" ").problems()] == ["phrase"]
    assert isinstance(LookAhead(), RewritesExamples)
    assert not isinstance(SimpleNamespace(), RewritesExamples)
