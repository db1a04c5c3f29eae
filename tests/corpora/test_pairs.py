"""Harmful rows beside the refusals of their prompts, from the corpus to the batch."""

from typing import ClassVar

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from harness.corpora.batches import Pool, RoleBatches
from harness.corpora.encode import IGNORED, Encoded, Encoding
from harness.corpora.examples import Example, Role, SafetyRow
from harness.corpora.slices import Slice
from harness.corpora.template import Template
from harness.errors import DataError, Problem
from harness.protocols import DataRequirement
from harness.stages.train_adapter import pools

WORDS = ("<unk>", "</s>", "a", "b", "c", "d", "how", "yes", "no", "long")
SHORT = Encoding(template=Template.PLAIN, newline=False, max_length=6)


class Rows:
    """Safety rows given as they are."""

    name: ClassVar[str] = "rows"
    version: ClassVar[int] = 1

    def __init__(self, *rows: SafetyRow) -> None:
        self._rows = list(rows)

    def preflight(self) -> list[Problem]:
        return []

    def safety_rows(self) -> list[SafetyRow]:
        return self._rows


PAIRED = Rows(
    SafetyRow("how a", "no a", "yes a"),
    SafetyRow("how b", "no b", "yes b"),
    SafetyRow("how long long long long long", "no c", "yes c"),
    SafetyRow("how d", "no d", "yes d"),
)
UNPAIRED = Rows(SafetyRow("how a", "no a", "yes a"), SafetyRow("how b", "", "yes b"))


def _slice(origin: Rows, rows: int) -> Slice:
    return Slice(role=Role.HARMFUL, origin=origin, start=0, rows=rows)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>")


def test_refusals_of_harmful_rows_answer_the_same_prompts() -> None:
    rows = _slice(PAIRED, 4)

    assert rows.refusals()[:2] == [Example("how a", "no a"), Example("how b", "no b")]
    assert [row.instruction for row in rows.refusals()] == [row.instruction for row in rows.examples()]


def test_rows_without_refusals_are_found_before_anything_runs_if_pairs_are_needed() -> None:
    rows = _slice(UNPAIRED, 2)

    assert rows.preflight() == []
    (problem,) = rows.preflight(paired=True)
    assert "1 of 2 rows of `rows` have no refusal" in problem.text
    with pytest.raises(DataError):
        rows.refusals()


def test_pool_of_pairs_drops_both_of_a_pair_that_does_not_fit(tokenizer: PreTrainedTokenizerFast) -> None:
    need = DataRequirement(role=Role.HARMFUL, rows=None, batch_size=2, paired=True)
    facts: dict[str, object] = {}

    pool = pools(tokenizer, [need], {Role.HARMFUL: _slice(PAIRED, 4)}, SHORT, facts)[Role.HARMFUL]

    assert [len(pool.rows), len(pool.partners), pool.batch_size] == [3, 3, 2]
    assert facts == {"harmful_rows": {"drawn_from": 3, "dropped": 1}}
    pairs = list(zip(pool.rows, pool.partners, strict=True))
    answers = [(row.input_ids[-2], partner.input_ids[-2]) for row, partner in pairs]
    assert answers == [(WORDS.index(word), WORDS.index(word)) for word in "abd"]
    assert all(row.input_ids != partner.input_ids for row, partner in pairs)


def test_pool_without_pairs_has_no_partners(tokenizer: PreTrainedTokenizerFast) -> None:
    need = DataRequirement(role=Role.HARMFUL, rows=None, batch_size=2)

    pool = pools(tokenizer, [need], {Role.HARMFUL: _slice(UNPAIRED, 2)}, SHORT, {})[Role.HARMFUL]

    assert (len(pool.rows), pool.partners) == (2, ())


def _batches(**options: int) -> RoleBatches:
    rows = [Encoded([10 + i, 1], [IGNORED, 1]) for i in range(7)]
    partners = [Encoded([10 + i, 2, 3], [IGNORED, 2, 3]) for i in range(7)]
    return RoleBatches({Role.HARMFUL: Pool(rows, 4, partners)}, pad_id=0, seed=3, **options)


def test_pairs_have_the_same_prompts_row_by_row_on_every_process() -> None:
    for options in ({}, {"rank": 0, "world_size": 2}, {"rank": 1, "world_size": 2}):
        pair = _batches(**options).pair(Role.HARMFUL)

        assert pair.harmful["input_ids"][:, 0].tolist() == pair.refusal["input_ids"][:, 0].tolist()
        assert pair.harmful["input_ids"].shape[1] == 2
        assert pair.refusal["input_ids"].shape[1] == 3


def test_pair_is_the_batch_that_next_would_have_given_and_counts_as_one() -> None:
    pairs, plain = _batches(), _batches()

    for _ in range(3):
        assert pairs.pair(Role.HARMFUL).harmful["input_ids"].tolist() == plain.next(Role.HARMFUL)["input_ids"].tolist()
    assert pairs.state_dict() == plain.state_dict()


def test_derived_seeds_differ_by_name_and_not_by_process() -> None:
    first, second = _batches(rank=0, world_size=2), _batches(rank=1, world_size=2)

    assert first.derive("noise", "1") == second.derive("noise", "1")
    assert first.derive("noise", "1") != first.derive("noise", "2")
