"""Antibody's alignment by hand: w = (3, 4), h = |w|^2 / 2, rho 0.5, and the refusal loss is w1^2.

grad h = (3, 4) with norm 5, so w' = (2.7, 3.6) = grad h(w'), g_s = (0.3, 0.4) and ||g_s||^2 = 0.25; h = 12.5 and h' =
10.125. The refusal loss at w' is 7.29, its gradient (5.4, 0).

With f = -w1 - 2 w2, <g_s, grad f> = -1.1 and lambda = xi + 4.4. At xi 0, (-1, -2) + 4.4 g_s = (0.32, -0.24), which is
orthogonal to g_s; with half the refusal's gradient the update is (3.02, -0.24). With f = w1 + 2 w2, <g_s, grad f> is
1.1: lambda is 0 at xi 0, and 0.6 at xi 5.
"""

import pytest
import torch
from quadratic import Decoder, ModelRef, TinyLearner, half_square

from harness.corpora.batches import Pair
from harness.corpora.examples import Role
from harness.defenses.antibody import Antibody
from harness.defenses.booster import Booster
from harness.errors import ModelError


class Pairs:
    """Gives the harmful batch with its refusals, and counts."""

    def __init__(self):
        self.roles = []

    def pair(self, role):
        self.roles.append(role)
        return Pair(harmful={"kind": "harmful"}, refusal={"kind": "refusal"})

    def next(self, role):
        return self.pair(role).harmful


def losses(sign, harmful=half_square):
    return {
        "alignment": lambda w: sign * (w.first + 2 * w.second).sum(),
        "harmful": lambda w: harmful(torch.cat([w.first, w.second])),
        "refusal": lambda w: w.first.square().sum(),
    }


def written(method, sign, **options):
    weights, batches = ModelRef(3.0, 4.0), Pairs()
    metrics = method.start(TinyLearner(weights, losses(sign, **options)), batches, 1).backward({"kind": "alignment"})
    assert batches.roles == [Role.HARMFUL], "all passes use one pair of batches"
    assert (weights.first.item(), weights.second.item()) == (3.0, 4.0)
    return torch.cat([weights.first.grad, weights.second.grad]).tolist(), metrics


@pytest.mark.parametrize(
    ("sign", "xi", "refusal_weight", "weight", "update"),
    [
        (-1, 0.0, 0.5, 4.4, (3.02, -0.24)),
        (-1, 0.0, 0.0, 4.4, (0.32, -0.24)),
        (-1, 0.6, 0.0, 5.0, (0.5, 0.0)),
        (1, 0.0, 0.0, 0.0, (1.0, 2.0)),
        (1, 5.0, 0.0, 0.6, (1.18, 2.24)),
    ],
)
def test_update_is_the_one_computed_by_hand(sign, xi, refusal_weight, weight, update):
    found, metrics = written(Antibody(rho=0.5, xi=xi, refusal_weight=refusal_weight), sign)

    assert found == pytest.approx(update, abs=1e-5)
    assert {name: round(float(value), 4) for name, value in metrics.items()} == {
        "loss": sign * 11.0,
        "loss_gradient_norm": 2.2361,
        "harmful_loss": 12.5,
        "harmful_gradient_norm": 5.0,
        "sharpness": 2.375,
        "sharpness_weight": pytest.approx(weight, abs=1e-4),
        "refusal_loss": 7.29,
    }


def test_step_is_boosters_at_the_weight_that_it_finds():
    found, metrics = written(Antibody(rho=0.5, refusal_weight=0.0), -1)

    booster, _ = written(Booster(alpha=0.5, lamb=float(metrics["sharpness_weight"])), -1)

    assert found == pytest.approx(booster, abs=1e-5)


def test_harmful_loss_without_curvature_has_no_sharpness_to_lower():
    found, metrics = written(Antibody(rho=0.5, xi=3.0, refusal_weight=0.0), -1, harmful=torch.sum)

    assert found == [-1, -2]
    assert float(metrics["sharpness_weight"]) == 0


def test_model_with_dropout_is_refused():
    model = Decoder(1.5, 2.0)
    model.noise = torch.nn.Dropout(0.1)

    with pytest.raises(ModelError, match="Antibody compares two gradients"):
        Antibody().start(TinyLearner(model, {}), Pairs(), 1)


def test_settings_out_of_range_are_reported():
    wrong = Antibody(rho=0, xi=-1, refusal_weight=-1, harmful_rows=0, harmful_batch_size=0)

    assert [problem.path for problem in wrong.problems()] == [
        "rho",
        "xi",
        "refusal_weight",
        "harmful_rows",
        "harmful_batch_size",
    ]
    (need,) = Antibody().needs
    assert need.paired
