"""SafeInstruct: as many safety rows as are asked for, no more and no fewer, each once an epoch."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from harness.corpora.corpus import Corpus, Span
from harness.corpora.encode import Encoding
from harness.corpora.examples import Role
from harness.corpora.world import World
from harness.defenses.safe_instruct import SafeInstruct
from harness.errors import DataError
from harness.protocols import DataRequirement
from harness.stages.train_adapter import encode_mixed, pools

CORPUS = Corpus(
    origin=World(), shared_prompts=True, refusal=Span(rows=50), attack=Span(rows=10), evaluation=Span(rows=10)
)


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>", pad_token="</s>")


def test_rows_mixed_in_are_the_first_of_the_corpus_and_are_counted(tokenizer):
    needs, facts = SafeInstruct(safety_rows=7).needs, {}
    slices = {Role.REFUSAL: CORPUS.slice(Role.REFUSAL, 7)}

    mixed = encode_mixed(tokenizer, needs, slices, Encoding(), facts)

    assert mixed == Encoding().encode_all(tokenizer, CORPUS.slice(Role.REFUSAL).examples()[:7]).rows
    assert facts == {"refusal_rows": {"mixed_in": 7, "dropped": 0}}
    assert pools(tokenizer, needs, slices, Encoding(), facts) == {}


def test_rows_that_do_not_fit_are_counted_as_dropped(tokenizer):
    facts = {}
    slices = {Role.REFUSAL: CORPUS.slice(Role.REFUSAL, 7)}

    mixed = encode_mixed(tokenizer, SafeInstruct(safety_rows=7).needs, slices, Encoding(max_length=2), facts)

    assert (mixed, facts) == ([], {"refusal_rows": {"mixed_in": 0, "dropped": 7}})


def test_rows_that_are_drawn_are_not_mixed_in(tokenizer):
    facts = {}
    needs = [DataRequirement(role=Role.REFUSAL, rows=7, batch_size=2)]

    assert encode_mixed(tokenizer, needs, {}, Encoding(), facts) == []
    assert facts == {}


def test_slot_that_does_not_offer_the_rows_is_told(tokenizer):
    with pytest.raises(DataError, match="`refusal`, which this slot does not provide"):
        encode_mixed(tokenizer, SafeInstruct().needs, {}, Encoding(), {})
