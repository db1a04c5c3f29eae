"""Antidote by hand: a layer of three inputs and two outputs, two harmful rows, the first with padding.

Tokens (1, 0, 2), (1, 0, 0) and (0, 2, 0): squared norms per row (2, 0, 4) and (0, 4, 0), their mean (1, 2, 2). With
W = ((3, -2, 2), (2, 2, 2)) the scores are (3, 2.83, 2.83) and (2, 2.83, 2.83).
"""

import pytest
import torch
from torch import nn

from harness.corpora.examples import Role
from harness.defenses.antidote import Antidote, kept_entries
from harness.errors import ModelError
from harness.training.pieces import cut

BATCH = {
    "input_ids": torch.zeros(2, 3),
    "attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]]),
    "labels": torch.zeros(2, 3),
    "features": torch.tensor([[[1.0, 0, 2], [1, 0, 0], [9, 9, 9]], [[0, 2, 0], [9, 9, 9], [9, 9, 9]]]),
}


class Learner:
    """One linear layer, seen as a method sees a model."""

    def __init__(self, matrix):
        self.module = nn.Linear(3, len(matrix), bias=False)
        self.module.weight.data = torch.tensor(matrix)
        self.trainables = [self.module.weight]

    def pieces(self, batch):
        return cut(batch, None, device=torch.device("cpu"))

    def predict(self, piece):
        self.module(piece.batch["features"])


class BatchProvider:
    def __init__(self, *batches, seed=0):
        self.batches, self.roles, self.seed = batches, [], seed

    def derive(self, *names):
        return self.seed

    def every(self, role):
        self.roles.append(role)
        return iter(self.batches)


def repaired(settings, matrix=((3.0, -2.0, 2.0), (2.0, 2.0, 2.0)), batches=None):
    learner = Learner(matrix)
    settings.repair(learner, start=[], method_outputs={}, batches=batches or BatchProvider(BATCH))
    return learner.module.weight.tolist()


def test_antidote_zeroes_the_most_important_entries_of_every_row_and_the_later_of_equals():
    # floor(3 * 0.6) = 1 entry stays: in the first row one of the two with 2.83.
    assert repaired(Antidote(dense_ratio=0.4)) == [[0, -2, 0], [2, 0, 0]]


def test_antidote_of_a_small_ratio_takes_one_entry_of_three():
    # floor(3 * 0.7) = 2 entries stay.
    assert repaired(Antidote(dense_ratio=0.3)) == [[0, -2, 2], [2, 2, 0]]


def test_antidote_ignores_padding():
    altered = BATCH | {"features": torch.where(BATCH["features"] == 9, 1e6, BATCH["features"])}

    assert repaired(Antidote(dense_ratio=0.4), batches=BatchProvider(altered)) == repaired(Antidote(dense_ratio=0.4))


def test_antidote_averages_over_rows_whatever_the_batches():
    one_by_one = BatchProvider(
        *({name: value[place : place + 1] for name, value in BATCH.items()} for place in range(2))
    )

    assert repaired(Antidote(dense_ratio=0.4), batches=one_by_one) == repaired(Antidote(dense_ratio=0.4))
    assert one_by_one.roles == [Role.HARMFUL], "the rows go through the model once"


def test_antidote_counts_a_token_by_its_square():
    # One token of 2 in the first feature (4) outweighs three tokens of 1 in the second (3).
    features = torch.tensor([[[2.0, 1, 0], [0, 1, 0], [0, 1, 0]]])
    batch = {name: torch.ones(1, 3, dtype=int) for name in ("input_ids", "attention_mask", "labels")}
    batch |= {"features": features}

    assert repaired(Antidote(dense_ratio=0.3), [[1.0, 1.0, 1.0]], BatchProvider(batch)) == [[0, 1, 1]]


def test_antidote_by_magnitude_needs_no_data():
    settings = Antidote(dense_ratio=0.3, score="magnitude")

    assert settings.needs == ()
    assert repaired(settings, [[1.0, -3.0, 2.0]], BatchProvider()) == [[1, 0, 2]]


def test_antidote_at_random_takes_as_many_per_row_and_depends_on_the_seed():
    settings = Antidote(dense_ratio=0.3, score="random")
    matrix = [[1.0, 1.0, 1.0]] * 50

    first, again, other = (repaired(settings, matrix, BatchProvider(seed=seed)) for seed in (0, 0, 1))

    assert settings.needs == ()
    assert {sum(row) for row in first} == {2}
    assert {tuple(row) for row in first} == {(0, 1, 1), (1, 0, 1), (1, 1, 0)}
    assert first == again != other


@pytest.mark.parametrize(
    ("length", "ratio", "stay"),
    [(4096, 0.05, 3891), (256, 0.05, 243), (32, 0.01, 31), (256, 0.01, 253), (100, 0.9, 10), (10, 0, 10), (10, 1, 0)],
)
def test_entries_that_stay_are_counted_down_and_exactly(length, ratio, stay):
    # 100 * (1 - 0.9) is 9.999... in floating point, and one row more would go.
    assert kept_entries(length, ratio) == stay


def test_antidote_states_what_the_ratio_came_to():
    learner = Learner([[3.0, 2.0, 1.0]])

    facts = Antidote(dense_ratio=0.1).repair(learner, start=[], method_outputs={}, batches=BatchProvider(BATCH))

    assert facts == {"dense_ratio": 0.1, "rows": {"3": {"zeroed": 1, "share": 1 / 3}}}


def test_antidote_leaves_no_hook_and_frozen_layers_alone():
    learner = Learner([[3.0, 2.0, 1.0]])
    frozen = nn.Linear(3, 3, bias=False)
    learner.module = nn.Sequential(frozen, learner.module)
    learner.predict = lambda piece: learner.module(piece.batch["features"])
    before = frozen.weight.clone()

    Antidote().repair(learner, start=[], method_outputs={}, batches=BatchProvider(BATCH))

    assert torch.equal(frozen.weight, before)
    assert not any(part._forward_pre_hooks for part in learner.module.modules())


def test_antidote_on_a_model_without_trainable_linear_layers_is_refused():
    learner = Learner([[1.0, 1.0, 1.0]])
    learner.trainables = []

    with pytest.raises(ModelError, match="no linear layer of the model is trainable"):
        Antidote().repair(learner, start=[], method_outputs={}, batches=BatchProvider(BATCH))


def test_antidote_settings_out_of_range_are_all_reported():
    settings = Antidote(dense_ratio=1.5, harmful_rows=0, harmful_batch_size=0)

    assert [problem.path for problem in settings.problems()] == [
        "dense_ratio",
        "harmful_rows",
        "harmful_batch_size",
    ]
