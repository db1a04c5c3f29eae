"""DeRTa by hand: prompt 1 2, harmful answer 3 4 5 6, refusal 7 8, of which 8 ends an answer.

The transition is predicted at the last token of the prompt and at the four of the answer: five times the target 7. A
refusal follows at most 4 - 2 = 2 tokens of the harmful answer, and none for the first, fourth, seventh prompt.
"""

from random import Random

import torch

from harness.corpora.batches import collate
from harness.corpora.encode import IGNORED, Encoded
from harness.corpora.examples import Role
from harness.defenses.derta import DeRTa
from harness.protocols import AnswerPair
from harness.training.pieces import cut

PAIR = AnswerPair([1, 2], [3, 4, 5, 6], [7, 8])
TRANSITION = Encoded([1, 2, 3, 4, 5, 6, 8], [IGNORED] * 2 + [7] * 5)
PLAIN = Encoded([1, 2, 7, 8], [IGNORED] * 2 + [7, 8])
LATE = [
    Encoded([1, 2, 3, 7, 8], [IGNORED] * 3 + [7, 8]),
    Encoded([1, 2, 3, 4, 7, 8], [IGNORED] * 4 + [7, 8]),
]


def test_pair_gives_a_late_refusal_and_a_transition():
    rows = DeRTa().compose([PAIR] * 600, Random(0))

    assert rows[1::2] == [TRANSITION] * 600
    assert rows[0::6] == [PLAIN] * 200
    late = [row for place, row in enumerate(rows[0::2]) if place % 3]
    assert len(late) == 400
    assert all(150 < late.count(each) < 250 for each in LATE)


def test_refusal_is_the_target_of_every_position_of_the_answer():
    (piece,) = cut(collate([TRANSITION], 0), None, device=torch.device("cpu"))

    assert piece.supervised.tolist() == [1, 2, 3, 4, 5]
    assert piece.targets.tolist() == [7] * 5


def test_answer_of_two_tokens_gives_a_transition_alone():
    short = PAIR._replace(harmful=[3, 4])

    assert DeRTa().compose([short], Random(0)) == [Encoded([1, 2, 3, 4, 8], [IGNORED] * 2 + [7] * 3)]


def test_settings_out_of_range_are_reported():
    assert [problem.path for problem in DeRTa(pairs=0, benign_rows=-1).problems()] == ["pairs", "benign_rows"]
    assert [need.role for need in DeRTa(benign_rows=0).needs] == [Role.HARMFUL]
