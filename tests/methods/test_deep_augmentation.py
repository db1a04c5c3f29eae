"""Deep augmentation by hand: prompt 1 2, harmful answer 3 4 5, refusal 6 7, which alone is supervised.

After two tokens of the harmful answer the example is 1 2 3 4 6 7, with labels for the last two.
"""

from random import Random

from harness.corpora.encode import IGNORED, Encoded
from harness.corpora.examples import Role
from harness.defenses.deep_augmentation import DeepAugmentation
from harness.protocols import AnswerPair

PAIR = AnswerPair([1, 2], [3, 4, 5], [6, 7])
AT = [
    Encoded([1, 2, 6, 7], [IGNORED] * 2 + [6, 7]),
    Encoded([1, 2, 3, 6, 7], [IGNORED] * 3 + [6, 7]),
    Encoded([1, 2, 3, 4, 6, 7], [IGNORED] * 4 + [6, 7]),
    Encoded([1, 2, 3, 4, 5, 6, 7], [IGNORED] * 5 + [6, 7]),
]
"""The example with each number of tokens of the harmful answer."""


def depths(count, **settings):
    return [AT.index(row) for row in DeepAugmentation(**settings).compose([PAIR] * count, Random(0))]


def test_refusal_follows_each_number_of_tokens_equally_often():
    found = depths(3000, share=1)

    assert set(found) == {1, 2, 3}
    assert all(900 < found.count(depth) < 1100 for depth in (1, 2, 3))


def test_share_of_the_refusals_is_late_and_the_others_follow_the_prompt():
    found = depths(1000)

    assert 450 < found.count(0) < 550
    assert set(depths(50, share=0)) == {0}
    assert set(depths(50, share=1, most=1)) == {1}


def test_prompt_whose_harmful_answer_is_empty_is_refused_directly():
    (row,) = DeepAugmentation(share=1).compose([PAIR._replace(harmful=[])], Random(0))

    assert row == AT[0]


def test_settings_out_of_range_are_reported():
    wrong = DeepAugmentation(share=2, most=0, triplets=0, benign_rows=-1)

    assert [problem.path for problem in wrong.problems()] == ["share", "most", "triplets", "benign_rows"]


def test_harmless_examples_can_be_left_out():
    assert [(need.role, need.paired, need.batch_size) for need in DeepAugmentation().needs] == [
        (Role.HARMFUL, True, None),
        (Role.BENIGN, False, None),
    ]
    assert [need.role for need in DeepAugmentation(benign_rows=0).needs] == [Role.HARMFUL]
    assert DeepAugmentation(benign_rows=0).problems() == []
