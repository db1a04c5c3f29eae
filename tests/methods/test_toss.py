"""TOSS by hand: each of three tokens has a logit of its own, and every position predicts from these three.

The harmless reference is trained on token 0, the harmful one on token 1, so a token 1 of the user's answers has the
highest score, token 2 one of 0, and token 0 the lowest. One step of AdamW moves every logit by the learning rate 1:
the gradients are (-, +, +) on token 0 and (+, -, +) on token 1, so the logits become (1, -1, -1) and (-1, 1, -1). With
Z = e + 2/e, token 1 costs log Z + 1 under the first and log Z - 1 under the second: the score is 2, that of token 0
is -2.
"""

import pytest
import torch
from torch import nn
from user_learner import CutLearner

from harness.corpora.batches import Pool
from harness.corpora.encode import IGNORED, Encoded
from harness.corpora.examples import Role
from harness.defenses.toss import TOSS, token_losses, without
from harness.training.budget import Budget
from harness.training.choice import StageRows

BUDGET = Budget(epochs=1, batch_size=1, learning_rate=1.0, weight_decay=0.0, max_grad_norm=None)


class Unigram(nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(3))

    def forward(self, batch):
        return self.logits.expand(*batch["labels"].shape, 3)


def answering(*tokens):
    return Encoded([0, *tokens], [IGNORED, *tokens])


class References:
    """Gives one example for each reference, and counts."""

    def __init__(self):
        self.roles = []

    def next(self, role):
        self.roles.append(role)
        token = {Role.BENIGN: 0, Role.HARMFUL: 1}[role]
        return {"labels": torch.tensor([[-100, token]])}


def choose(own, **settings):
    learner, references = CutLearner(Unigram()), References()
    pools = {role: Pool([answering(0)], 1) for role in (Role.BENIGN, Role.HARMFUL)}
    given = StageRows(own, pools, batch_size=2, seed=0, pad_id=0)
    return TOSS(budget=BUDGET, **settings).choose(learner, given, references), learner, references


def test_tokens_that_the_harmful_model_predicts_best_are_masked():
    own = [answering(0, 1, 2), answering(2, 2), answering(1, 0, 0, 0, 0)]

    found, _, references = choose(own)

    assert found.rows == [
        (0, Encoded([0, 0, 1, 2], [IGNORED, 0, IGNORED, 2])),
        (1, own[1]),
        (2, Encoded([0, 1, 0, 0, 0, 0], [IGNORED, IGNORED, 0, 0, 0, 0])),
    ]
    assert found.facts["lowest_masked_score"] == pytest.approx(2, abs=1e-5)
    assert references.roles == [Role.BENIGN, Role.HARMFUL]


def test_tokens_are_ranked_over_the_whole_data_and_equal_ones_in_their_order():
    own = [answering(0, 0), answering(2, 1), answering(1, 2)]

    assert [row.labels for _, row in choose(own, share=0.2)[0].rows] == [
        [IGNORED, 0, 0],
        [IGNORED, 2, IGNORED],
        [IGNORED, 1, 2],
    ]
    assert [(place, row.labels) for place, row in choose(own, share=0.5)[0].rows] == [
        (0, [IGNORED, 0, 0]),
        (2, [IGNORED, IGNORED, 2]),
    ]


def test_example_without_a_token_left_is_dropped():
    found, _, _ = choose([answering(1), answering(0, 0, 0)], share=0.25)

    assert found.rows == [(1, answering(0, 0, 0))]


def test_model_is_restored_exactly():
    _, learner, _ = choose([answering(0, 1)])

    assert learner.module.logits.tolist() == [0, 0, 0]
    assert learner.module.training


def test_losses_are_those_of_each_example_in_its_order():
    learner = CutLearner(Unigram())
    learner.put([torch.tensor([0.0, 0.0, 100.0])])
    rows = [answering(2, 0), answering(0)]
    (batch,) = StageRows(rows, {}, batch_size=2, seed=0, pad_id=0).batches(rows)

    first, second = token_losses(learner, batch)

    assert first == pytest.approx([0, 100])
    assert second == pytest.approx([100])


def test_supervised_tokens_are_counted_without_those_that_are_not():
    row = Encoded([5, 6, 7, 8], [IGNORED, 6, IGNORED, 8])

    assert without(row, {1}) == Encoded([5, 6, 7, 8], [IGNORED, 6, IGNORED, IGNORED])
    assert without(row, set()) == row


def test_settings_out_of_range_are_reported():
    wrong = TOSS(share=1, harmful_rows=0, benign_rows=0)

    assert [problem.path for problem in wrong.problems()] == ["share", "harmful_rows", "benign_rows"]
