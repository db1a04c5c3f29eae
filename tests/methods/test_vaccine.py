"""Vaccine by hand: one layer, y = r e with e = a x; f = sum(y^2) / 2; a = 1, r = 2, rows x = 3 and 4, rho 2.5.

e = (3, 4), y = (6, 8), f = 50; G = r y = (12, 16) with norm 20, so delta = 2.5 (0.6, 0.8) = (1.5, 2).
e' = (4.5, 6), y' = (9, 12), f' = 112.5. df'/dr = y'.e' = 40.5 + 72 = 112.5; df'/da = r y'.x = 2 (27 + 48) = 150.
With Booster's term for h = (a^2 + r^2) / 2 and alpha 0.1: it adds lambda times a step of length 0.1 along (1, 2).
"""

import math

import pytest
import torch
from quadratic import Decoder, Harmful, TinyLearner, half_square

from harness.defenses.booster_vaccine import BoosterVaccine
from harness.defenses.vaccine import Vaccine

ROWS = torch.tensor([3.0, 4.0])
LOSSES = {
    "alignment": lambda model: half_square(model(ROWS)),
    "harmful": lambda model: half_square(torch.stack(list(model.parameters()))),
}


def gradient_of(model):
    (layer,) = model.layers
    return layer.self_attn.weight.grad.item(), layer.readout.grad.item()


def test_vaccine_step_on_two_weights_writes_the_gradient_computed_by_hand():
    model = Decoder(1.0, 2.0)
    step = Vaccine(rho=2.5).start(TinyLearner(model, LOSSES), Harmful(), 1)

    metrics = step.backward({"kind": "alignment"})

    assert gradient_of(model) == pytest.approx((150.0, 112.5))
    assert {name: round(float(value), 3) for name, value in metrics.items()} == {
        "loss": 50.0,
        "perturbed_loss": 112.5,
        "activation_gradient_norm": 20.0,
    }


def test_booster_vaccine_step_on_two_weights_writes_the_gradient_computed_by_hand():
    model = Decoder(1.0, 2.0)
    step = BoosterVaccine(rho=2.5, lamb=10, alpha=0.1).start(TinyLearner(model, LOSSES), Harmful(), 1)

    step.backward({"kind": "alignment"})

    along = 10 * 0.1 / math.sqrt(5)
    assert gradient_of(model) == pytest.approx((150 + along, 112.5 + 2 * along))


def test_vaccine_step_leaves_no_hook_behind():
    model = Decoder(1.0, 2.0)
    step = Vaccine(rho=2.5).start(TinyLearner(model, LOSSES), Harmful(), 1)

    step.backward({"kind": "alignment"})

    assert model(ROWS).tolist() == [6.0, 8.0], "the forward pass is unperturbed again"


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [(Vaccine(rho=0), ["rho"]), (BoosterVaccine(lamb=-1, alpha=-1, rho=-1), ["lamb", "alpha", "rho"])],
)
def test_vaccine_settings_out_of_range_are_all_reported(settings, wrong):
    assert [problem.path for problem in settings.problems()] == wrong
