"""Every estimator of gradients trains a model's own weights: matrices, embeddings and vectors."""

import pytest
import torch
from test_copies_of_weights import build
from test_estimated_training import BUDGET, ESTIMATORS, mostly_slow
from test_train_methods import Tracker, rows, weights_of

from harness.training.trainer import train


@pytest.mark.parametrize("name", mostly_slow(ESTIMATORS))
def test_estimator_moves_every_weight(name, tmp_path):
    model = build()
    before = weights_of(model)

    train(
        model,
        method=None,
        rows=rows(8, 1),
        budget=BUDGET,
        seed=3,
        pad_id=0,
        work=tmp_path,
        tracker=Tracker(),
        update=ESTIMATORS[name],
    )

    after = weights_of(model)
    assert any(value.dim() == 1 for value in after.values())
    assert all(bool(value.isfinite().all()) for value in after.values())
    assert not [weight for weight in before if torch.equal(before[weight], after[weight])]
