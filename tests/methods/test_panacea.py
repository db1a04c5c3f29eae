"""Panacea by hand: w = (3, 4), g = w1 + 2 w2, h = |w|^2 / 2, rho 0.5, lambda 10.

grad h = (3, 4) with norm 5, so eps = 0.5 (0.6, 0.8) = (0.3, 0.4) and grad h(w + eps) = (3.3, 4.4). The update is
(1, 2) - 10 (0.3, 0.4) = (-2, -2). h = 12.5; h(w + eps) = 5.5^2 / 2 = 15.125.
"""

import pytest
import torch
from quadratic import Decoder, Harmful, ModelRef, TinyLearner, half_square

from harness.corpora.examples import Role
from harness.defenses.panacea import Panacea, PanaceaRepair
from harness.defenses.random_perturbation import RandomPerturbation
from harness.errors import ModelError
from harness.protocols import ProducesOutputs

LOSSES = {
    "user": lambda w: (w.first + 2 * w.second).sum(),
    "harmful": lambda w: half_square(torch.cat([w.first, w.second])),
}


def flat(tensors):
    return torch.cat([tensor.detach() for tensor in tensors])


def begun(weights, batches=None, **settings):
    return Panacea(**{"lamb": 10, "rho": 0.5} | settings).start(TinyLearner(weights, LOSSES), batches or Harmful(), 2)


def test_panacea_step_on_two_weights_writes_the_gradient_computed_by_hand():
    weights, batches = ModelRef(3.0, 4.0), Harmful()
    step = begun(weights, batches)

    metrics = step.backward({"kind": "user"})

    torch.testing.assert_close(flat([weights.first.grad, weights.second.grad]), torch.tensor([-2.0, -2.0]))
    assert {name: round(float(value), 4) for name, value in metrics.items()} == {
        "loss": 11.0,
        "harmful_loss": 12.5,
        "harmful_loss_rise": 2.625,
        "harmful_gradient_norm": 5.0,
    }
    assert batches.roles == [Role.HARMFUL], "both harmful passes use one batch"
    assert (weights.first.item(), weights.second.item()) == (3.0, 4.0)


@pytest.mark.parametrize(("cap", "gradient"), [(15.0, [31.0, 42.0]), (15.2, [-2.0, -2.0])])
def test_panacea_with_a_cap_drops_the_perturbed_gradient_from_there_on(cap, gradient):
    # What is left above the cap is (1, 2) + 10 (3, 4).
    weights = ModelRef(3.0, 4.0)

    begun(weights, harmful_cap=cap).backward({"kind": "user"})

    torch.testing.assert_close(flat([weights.first.grad, weights.second.grad]), torch.tensor(gradient))


def test_panacea_hands_over_the_last_perturbation_and_the_mean():
    weights = ModelRef(3.0, 4.0)
    step = begun(weights)
    step.backward({"kind": "user"})
    with torch.no_grad():
        weights.first.fill_(-4.0)
        weights.second.fill_(3.0)

    step.backward({"kind": "user"})

    assert isinstance(step, ProducesOutputs)
    torch.testing.assert_close(flat(step.outputs()["last"]), torch.tensor([-0.4, 0.3]))
    torch.testing.assert_close(flat(step.outputs()["mean"]), torch.tensor([-0.05, 0.35]))


def test_panacea_restored_hands_over_what_the_first_run_would():
    first = begun(ModelRef(3.0, 4.0))
    first.backward({"kind": "user"})
    second = begun(ModelRef(-4.0, 3.0))

    second.load_state_dict(first.state_dict())
    second.backward({"kind": "user"})

    torch.testing.assert_close(flat(second.outputs()["last"]), torch.tensor([-0.4, 0.3]))
    torch.testing.assert_close(flat(second.outputs()["mean"]), torch.tensor([-0.05, 0.35]))


@pytest.mark.parametrize(("epsilon", "expected"), [("last", [2.6, 4.3]), ("mean", [2.95, 4.35])])
def test_panacea_repair_adds_the_chosen_perturbation(epsilon, expected):
    weights = ModelRef(3.0, 4.0)
    left = {"last": [torch.tensor([-0.4]), torch.tensor([0.3])], "mean": [torch.tensor([-0.05]), torch.tensor([0.35])]}

    facts = PanaceaRepair(epsilon=epsilon).repair(
        TinyLearner(weights, {}), start=[], method_outputs=left, batches=Harmful()
    )

    torch.testing.assert_close(flat([weights.first, weights.second]), torch.tensor(expected))
    assert facts["epsilon"] == epsilon


def test_panacea_repair_reports_the_length_of_what_it_added():
    left = {"last": [torch.tensor([-0.4]), torch.tensor([0.3])]}

    facts = PanaceaRepair().repair(
        TinyLearner(ModelRef(3.0, 4.0), {}), start=[], method_outputs=left, batches=Harmful()
    )

    assert facts["epsilon_norm"] == pytest.approx(0.5)


def test_panacea_repair_after_another_fine_tuning_is_refused():
    with pytest.raises(ModelError, match="produced no perturbation"):
        PanaceaRepair().repair(TinyLearner(ModelRef(3.0, 4.0), {}), start=[], method_outputs={}, batches=Harmful())


def test_panacea_repair_goes_with_panacea_in_fine_tuning_only():
    slots = {"align": None, "finetune": Panacea(), "repair": PanaceaRepair()}

    (plain,) = PanaceaRepair().conflicts(slots | {"finetune": None})
    (other,) = PanaceaRepair().conflicts(slots | {"finetune": RandomPerturbation()})

    assert PanaceaRepair().conflicts(slots) == []
    assert "which holds plain training. Set" in str(plain)
    assert "which holds `random_perturbation`. Set" in str(other)


def test_panacea_in_fine_tuning_needs_the_repair_that_adds_its_perturbation():
    slots = {"align": None, "finetune": Panacea(), "repair": None}

    (empty,) = Panacea().conflicts(slots)
    (other,) = Panacea().conflicts(slots | {"repair": RandomPerturbation()})

    assert Panacea().conflicts(slots | {"repair": PanaceaRepair()}) == []
    assert "which is empty. Set" in str(empty)
    assert "which holds `random_perturbation`. Set" in str(other)


def test_panacea_on_a_model_with_dropout_is_refused():
    model = Decoder(1.5, 2.0)
    model.noise = torch.nn.Dropout(0.1)

    with pytest.raises(ModelError, match=r"dropout is active in `noise` \(rate 0.1\); Panacea compares"):
        Panacea().start(TinyLearner(model, {}), Harmful(), 1)


def test_panacea_settings_out_of_range_are_all_reported():
    settings = Panacea(lamb=-1, rho=0, harmful_cap=0, harmful_rows=0, harmful_batch_size=0)

    assert [problem.path for problem in settings.problems()] == [
        "lamb",
        "rho",
        "harmful_cap",
        "harmful_rows",
        "harmful_batch_size",
    ]
