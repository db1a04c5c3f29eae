"""Examples that a method changes before they are mixed in: on real rows of the tiny world and a tokenizer of words."""

import pytest
from words import word_tokenizer

from harness.corpora.corpus import Corpus, Span
from harness.corpora.encode import IGNORED, Encoding
from harness.corpora.examples import Example, Role
from harness.corpora.slices import Keep
from harness.corpora.template import Template
from harness.corpora.world import AllowedRequests, HarmlessRequests, World, vocabulary
from harness.defenses.deep_augmentation import DeepAugmentation
from harness.defenses.derta import DeRTa
from harness.errors import DataError
from harness.stages.mixed_in import Changes, answer_pairs
from harness.stages.train_adapter import encode_mixed

CORPUS = Corpus(
    origin=World(),
    shared_prompts=True,
    refusal=Span(rows=20),
    attack=Span(rows=10),
    evaluation=Span(rows=10),
    benign_origin=HarmlessRequests(rows=30),
    benign=Span(rows=30, keep=Keep.SAFE),
)
PLAIN = Encoding(template=Template.PLAIN, newline=False, max_length=64)
SLICES = {Role.HARMFUL: CORPUS.slice(Role.HARMFUL, 6), Role.BENIGN: CORPUS.slice(Role.BENIGN, 4)}


@pytest.fixture(scope="module")
def words():
    return word_tokenizer([*vocabulary(), ":"])


def mixed(words, method, encoding=PLAIN):
    facts = {}
    return encode_mixed(words, method.needs, SLICES, encoding, facts, changed_by=Changes(method, (), 0)), facts


def test_pairs_are_the_tokens_of_prompt_and_answers(words):
    row = SLICES[Role.HARMFUL].safety_rows()[0]

    (first, *_), dropped = answer_pairs(words, PLAIN, SLICES[Role.HARMFUL])

    assert words.convert_ids_to_tokens(first.prompt) == ["<s>", *row.prompt.split(), ":"]
    assert words.convert_ids_to_tokens(first.harmful) == row.harmful.split()
    assert words.convert_ids_to_tokens(first.refusal) == [*row.refusal.split(), "</s>"]
    assert dropped == 0


def test_harmful_answer_that_was_cut_off_keeps_its_last_token(words):
    row = SLICES[Role.HARMFUL].safety_rows()[0]
    short = Encoding(template=Template.PLAIN, newline=False, max_length=15)

    (first, *_), _ = answer_pairs(words, short, SLICES[Role.HARMFUL])

    assert words.convert_ids_to_tokens(first.harmful) == row.harmful.split()[:3]


def test_late_refusals_and_harmless_examples_are_mixed_in_and_counted(words):
    rows, facts = mixed(words, DeepAugmentation(share=1, most=2))

    assert facts == {
        "harmful_rows": {"mixed_in": 6, "dropped": 0},
        "benign_rows": {"mixed_in": 4, "dropped": 0},
    }
    for row, source in zip(rows, SLICES[Role.HARMFUL].safety_rows(), strict=False):
        supervised = [token for token in row.labels if token != IGNORED]
        assert words.convert_ids_to_tokens(supervised) == [*source.refusal.split(), "</s>"]
        before = words.convert_ids_to_tokens(row.input_ids[: -len(supervised)])
        start = ["<s>", *source.prompt.split(), ":"]
        assert before in [start + source.harmful.split()[:depth] for depth in (1, 2)]


def test_rows_without_room_for_their_refusal_are_dropped_and_counted(words):
    # A prompt has 12 tokens, a refusal 12: at 26 each answer is cut off, at 13 a late refusal has no place.
    rows, facts = mixed(words, DeepAugmentation(share=1, most=3, benign_rows=0), PLAIN)
    assert len(rows) == 6

    cut = Encoding(template=Template.PLAIN, newline=False, max_length=14)
    rows, facts = mixed(words, DeepAugmentation(share=1, most=3, benign_rows=0), cut)

    assert facts["harmful_rows"]["dropped"] == 6 - len(rows) > 0
    assert all(len(row.input_ids) <= 14 for row in rows)


def test_transition_is_not_counted_as_cut_off(words):
    rows, facts = mixed(words, DeRTa(benign_rows=0))

    assert len(rows) == 12
    assert facts == {"harmful_rows": {"mixed_in": 12, "dropped": 0}}
    refuses = words.convert_tokens_to_ids("sorry")
    assert {label for row in rows[1::2] for label in row.labels} == {IGNORED, refuses}


def test_harmless_examples_are_not_those_on_which_over_refusal_is_measured():
    kept = CORPUS.slice(Role.BENIGN).examples()

    assert len({row.instruction for row in kept}) == 30
    assert not {row.instruction for row in kept} & {row.instruction for row in AllowedRequests().examples()}
    assert all(isinstance(row, Example) and row.output.startswith("take the") for row in kept)


def test_origin_without_helpful_answers_is_reported():
    other = Corpus(
        origin=World(),
        refusal=Span(rows=20),
        attack=Span(rows=10),
        evaluation=Span(rows=10),
        benign=Span(rows=5),
    )

    with pytest.raises(DataError, match=r"`corpus.benign`: 5 of 5 rows of `world` have no benign answer"):
        other.slice(Role.BENIGN).examples()
