"""Booster by hand: w = (3, 4), f = w1 + 2 w2, h = |w|^2 / 2, alpha 0.5, lambda 10.

grad h = (3, 4) with norm 5, so w' = w - 0.5 (0.6, 0.8) = (2.7, 3.6) = grad h(w'); grad h - grad h' = (0.3, 0.4).
The update is (1, 2) + 10 (0.3, 0.4) = (4, 6). h = 12.5, h' = (7.29 + 12.96) / 2 = 10.125.
"""

import pytest
import torch
from quadratic import Decoder, Harmful, ModelRef, TinyLearner, half_square

from harness.corpora.examples import Role
from harness.defenses.booster import Booster
from harness.defenses.booster_vaccine import BoosterVaccine
from harness.errors import ModelError

LOSSES = {
    "alignment": lambda w: (w.first + 2 * w.second).sum(),
    "harmful": lambda w: half_square(torch.cat([w.first, w.second])),
}


def test_booster_step_on_two_weights_writes_the_gradient_computed_by_hand():
    weights, batches = ModelRef(3.0, 4.0), Harmful()
    step = Booster(lamb=10, alpha=0.5).start(TinyLearner(weights, LOSSES), batches, 1)

    metrics = step.backward({"kind": "alignment"})

    torch.testing.assert_close(torch.cat([weights.first.grad, weights.second.grad]), torch.tensor([4.0, 6.0]))
    reported = {name: round(float(value), 4) for name, value in metrics.items()}
    assert reported == {
        "loss": 11.0,
        "loss_gradient_norm": 2.2361,
        "harmful_loss": 12.5,
        "harmful_loss_drop": 2.375,
        "harmful_gradient_norm": 5.0,
        "attenuation_norm": 0.5,
    }
    assert batches.roles == [Role.HARMFUL], "both harmful passes use one batch"


def test_booster_step_on_two_weights_leaves_them_untouched():
    weights = ModelRef(3.0, 4.0)
    step = Booster(lamb=10, alpha=0.5).start(TinyLearner(weights, LOSSES), Harmful(), 1)

    step.backward({"kind": "alignment"})

    assert (weights.first.item(), weights.second.item()) == (3.0, 4.0)


def test_booster_with_lambda_zero_is_plain_training():
    weights = ModelRef(3.0, 4.0)
    step = Booster(lamb=0, alpha=0.5).start(TinyLearner(weights, LOSSES), Harmful(), 1)

    step.backward({"kind": "alignment"})

    assert torch.cat([weights.first.grad, weights.second.grad]).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("method", [Booster(), BoosterVaccine()])
def test_booster_on_a_model_with_dropout_is_refused(method):
    model = Decoder(1.5, 2.0)
    model.noise = torch.nn.Dropout(0.1)

    with pytest.raises(ModelError, match=r"dropout is active in `noise` \(rate 0.1\)"):
        method.start(TinyLearner(model, {}), Harmful(), 1)


@pytest.mark.parametrize("method", [Booster(), BoosterVaccine()])
def test_booster_on_a_model_with_attention_dropout_is_refused(method):
    model = Decoder(1.5, 2.0)
    model.layers[0].self_attn.attention_dropout = 0.2

    with pytest.raises(ModelError, match=r"dropout is active in `layers.0.self_attn` \(rate 0.2\)"):
        method.start(TinyLearner(model, {}), Harmful(), 1)


def test_booster_settings_out_of_range_are_all_reported():
    settings = Booster(lamb=-1, alpha=0, harmful_rows=0, harmful_batch_size=0)

    assert [problem.path for problem in settings.problems()] == [
        "lamb",
        "alpha",
        "harmful_rows",
        "harmful_batch_size",
    ]
    assert not Booster().problems()


def test_booster_needs_the_harmful_rows_that_it_is_set_to():
    (need,) = Booster(harmful_rows=50, harmful_batch_size=5).needs

    assert (need.role, need.rows, need.batch_size) == (Role.HARMFUL, 50, 5)
