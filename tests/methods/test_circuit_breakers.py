"""Circuit breakers by hand: one layer adds w to an embedding of zero, so the only state is w, wherever it is taken.

With w_0 = (0.6, 0.8) and w = (1, 0) the cosine is 0.6 and its gradient (0.6, 0.8) - 0.6 (1, 0) = (0, 0.8). The distance
is ||(0.4, -0.8)|| = 0.8944; with the embeddings there are two states, so R = 0.4472 and its gradient is that of the
distance, (0.4472, -0.8944), by 2. At t = 75 of T = 300 and alpha 10 the weights are 2.5 and 7.5: the gradient is
2.5 (0.2236, -0.4472) + 7.5 (0, 0.8) = (0.5590, 4.8820), and (1, -1) more with the loss w_1 - w_2 of the refusals.
"""

import pytest
import torch
from states import ShiftLearner, batch
from user_learner import Safety

from harness.corpora.examples import Role
from harness.defenses.circuit_breakers import CircuitBreakers
from harness.errors import ModelError

BENIGN, HARMFUL, OWN = batch((2, 3), (1, 1)), batch((1, 4), (2, 1), (1, 1)), batch((1, 2))


def stepped(moved=(1, 0), **settings):
    learner, batches = ShiftLearner((0.6, 0.8)), Safety(BENIGN, HARMFUL)
    step = CircuitBreakers(**{"layers": (1,), "ramp_steps": 300} | settings).start(learner, batches, 150)
    learner.put([torch.tensor([float(value) for value in moved])])
    learner.steps_taken = 74
    return learner, batches, step.backward(OWN)


def test_terms_are_weighted_by_the_step_and_added_to_the_loss_of_the_refusals():
    learner, batches, metrics = stepped()

    assert learner.written == pytest.approx([1.5590170, 3.8819660])
    assert float(metrics["loss"]) == 1
    assert float(metrics["reroute_cosine"]) == pytest.approx(0.6)
    assert float(metrics["retain_distance"]) == pytest.approx(0.8**0.5 / 2)
    assert float(metrics["retain_gradient_norm"]) == pytest.approx(1.25)
    assert float(metrics["reroute_gradient_norm"]) == pytest.approx(6)
    assert batches.roles == [Role.BENIGN, Role.HARMFUL]
    assert not any(part._forward_hooks for part in learner.module.modules())


def test_published_form_holds_the_refusals_and_does_not_learn_them():
    learner, _, metrics = stepped(refusals="retain")

    # The mean is over the positions of both batches, at each of which the state has moved as far.
    assert learner.written == pytest.approx([0.5590170, 4.8819660])
    assert float(metrics["retain_distance"]) == pytest.approx(0.8**0.5 / 2)
    # Logits are the state, so the target's probability is that of 1 against 0.
    assert float(metrics["loss"]) == pytest.approx(0.3132617)


def test_weights_meet_at_the_last_step_unless_another_ramp_is_set():
    _, _, metrics = stepped(ramp_steps=None)

    assert float(metrics["retain_gradient_norm"]) == pytest.approx(1.25)
    # After the ramp only what holds is left.
    _, _, metrics = stepped(ramp_steps=50)
    assert float(metrics["retain_gradient_norm"]) == pytest.approx(5)
    assert float(metrics["reroute_gradient_norm"]) == 0


def test_state_that_has_turned_further_than_a_right_angle_is_left_alone():
    learner, _, metrics = stepped(moved=(-0.6, -0.8))

    assert float(metrics["reroute_cosine"]) == 0
    assert learner.written == pytest.approx([1 - 2.5 * 0.3, -1 - 2.5 * 0.4])


def test_published_layers_are_shares_of_the_depth():
    learner = ShiftLearner(*[(1, 1)] * 32)

    assert CircuitBreakers().start(learner, Safety(BENIGN), 1)._layers == [10, 20]
    with pytest.raises(ModelError, match="after 33 layers, but the model has 32"):
        CircuitBreakers(layers=(10, 33)).start(learner, Safety(BENIGN), 1)


def test_reference_is_that_of_the_start_after_a_resume():
    learner, batches = ShiftLearner((0.6, 0.8)), Safety(BENIGN, HARMFUL)
    settings = CircuitBreakers(layers=(1,), ramp_steps=300)
    state = settings.start(learner, batches, 150).state_dict()
    learner.put([torch.tensor([1.0, 0.0])])
    learner.steps_taken = 74
    resumed = settings.start(learner, batches, 150)

    resumed.load_state_dict(state)
    resumed.backward(OWN)

    assert learner.written == pytest.approx([1.5590170, 3.8819660])


def test_settings_out_of_range_are_reported():
    found = CircuitBreakers(alpha=-1, layers=(), ramp_steps=0, benign_batch_size=0).problems()

    assert [problem.path for problem in found] == ["alpha", "ramp_steps", "benign_batch_size", "layers"]
