import logging

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from harness.corpora.batches import collate
from harness.corpora.encode import IGNORED, Encoding
from harness.corpora.examples import Example
from harness.corpora.template import Template
from harness.engine.identity import key_of, payload_of

WORDS = ("<unk>", "<s>", "</s>", ":", "how", "do", "it", "take", "the", "tool", "and", "wait")
PLAIN = Encoding(template=Template.PLAIN, newline=False, max_length=16)


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """One token a word, and a token at the beginning, as in Llama."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def merging() -> PreTrainedTokenizerFast:
    """Letters, and one merge across the boundary of prompt and answer."""
    vocabulary = {token: i for i, token in enumerate(["</s>", "a", "b", ":", " ", ": ", ": a"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[(":", " "), (": ", "a")]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def _ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def test_encode_supervises_the_answer_and_the_end_only(words: PreTrainedTokenizerFast) -> None:
    row = PLAIN.encode(words, Example("how do it", "take the tool"))

    assert row is not None
    assert row.input_ids == _ids("<s> how do it : take the tool </s>")
    assert row.labels == [IGNORED] * 5 + _ids("take the tool </s>")


def test_end_token_that_the_row_holds_itself_is_supervised_like_any_other(words: PreTrainedTokenizerFast) -> None:
    row = PLAIN.encode(words, Example("how do it", "wait </s> and take"))

    assert row is not None
    assert row.labels[-5:] == _ids("wait </s> and take </s>")


def test_end_is_supervised_once_in_a_row_where_padding_has_the_same_token(words: PreTrainedTokenizerFast) -> None:
    rows = [PLAIN.encode(words, example) for example in (Example("how", "take the tool"), Example("how", "wait"))]
    end = WORDS.index("</s>")

    batch = collate([row for row in rows if row], pad_id=end)

    assert batch["input_ids"].tolist()[1] == [*_ids("<s> how : wait </s>"), end, end]
    assert (batch["labels"] == end).sum(dim=1).tolist() == [1, 1]
    assert batch["attention_mask"].sum(dim=1).tolist() == [7, 5]


def test_encode_with_a_tokenizer_that_ends_every_text_adds_no_second_end() -> None:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    ending = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")

    row = PLAIN.encode(ending, Example("how", "take"))

    assert row is not None
    assert row.input_ids == _ids("how : take </s>")
    assert row.labels == [IGNORED, IGNORED, *_ids("take </s>")]


def test_encode_with_a_token_across_the_boundary_supervises_that_token(merging: PreTrainedTokenizerFast) -> None:
    row = PLAIN.encode(merging, Example("b", "ab"))

    assert row is not None
    assert merging.convert_ids_to_tokens(row.input_ids) == ["b", " ", ": a", "b", "</s>"]
    assert row.labels == [IGNORED, IGNORED, *row.input_ids[2:]]


def test_encode_too_long_answer_is_cut_on_the_right(words: PreTrainedTokenizerFast) -> None:
    short = Encoding(template=Template.PLAIN, newline=False, max_length=6)

    row = short.encode(words, Example("how do", "take the tool and wait"))

    assert row is not None
    assert row.input_ids == _ids("<s> how do : take the")
    assert row.labels == [IGNORED] * 4 + _ids("take the")


@pytest.mark.parametrize(("max_length", "kept"), [(4, 0), (5, 1)])
def test_encode_all_drops_and_counts_rows_whose_answer_is_cut_away(
    words: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture, max_length: int, kept: int
) -> None:
    short = Encoding(template=Template.PLAIN, newline=False, max_length=max_length)
    long, brief = Example("how do", "take"), Example("how", "take")
    caplog.set_level(logging.WARNING)

    encoded = short.encode_all(words, [long, brief, long])

    assert len(encoded.rows) == 1 + 2 * kept
    assert encoded.dropped == 2 - 2 * kept
    assert all(label != IGNORED for row in encoded.rows for label in row.labels[-1:])
    assert ("2 of 3 examples dropped" in caplog.text) is (kept == 0)


def test_encode_all_equals_encoding_one_by_one(words: PreTrainedTokenizerFast) -> None:
    examples = [Example("how do it", "take the tool"), Example("how", "wait"), Example("do", "and wait", "it")]

    together = PLAIN.encode_all(words, examples)

    assert together.rows == [PLAIN.encode(words, example) for example in examples]
    assert PLAIN.encode_all(words, []) == ([], 0)


def test_encoding_identity_depends_on_template_newline_and_length() -> None:
    variants = [
        Encoding(),
        Encoding(newline=False),
        Encoding(template=Template.PLAIN),
        Encoding(max_length=512),
    ]

    assert len({key_of(payload_of(variant)) for variant in variants}) == len(variants)


def test_encoding_without_room_is_a_problem() -> None:
    assert str(Encoding(max_length=1).problems()[0]).startswith("`max_length`: 1 ")
    assert Encoding().problems() == []
