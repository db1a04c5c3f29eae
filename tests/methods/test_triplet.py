"""The triplet defense by hand: a layer adds w to an embedding, which is 0 for the token 5 and (1, 1) for 6.

With w_0 = (1, 0) and w = (0, 1), a benign answer of one token 5 has moved by sqrt(2). The harmful answer of the tokens
5 and 6 has the states (0, 1) and (1, 2), their mean is (0.5, 1.5), their distances from it 1 - 1.5 / sqrt(2.5) =
0.051317 and 1 - 3.5 / sqrt(12.5) = 0.010051, and from where they were, (1, 0) and (2, 1), 1 and 1 - 4/5 = 0.2.

S = (1.414214 - 0.051317 + 2) / 2 states = 1.681449, U = ((0.051317 - 1 + 3) + (0.010051 - 0.2 + 3)) / 2 = 2.430684.
Logits are states: at temperature 2 the benign prediction (1, 0) becomes (0, 1), so K = 4 (0.622459 - 0.377541) / 2 =
0.489837.
"""

import pytest
import torch
from states import ShiftLearner, batch
from torch.nn.functional import cosine_similarity, log_softmax
from user_learner import Safety

from harness.corpora.examples import Role
from harness.defenses.triplet import Triplet
from harness.errors import ModelError

BENIGN, OWN = batch((2, 1)), batch((1, 2))
HARMFUL = batch((1, 2), (1, 0))
HARMFUL["input_ids"][0, 2] = 6
START, NOW = (1.0, 0.0), (0.0, 1.0)


def stepped(**settings):
    learner, batches = ShiftLearner(START), Safety(BENIGN, HARMFUL)
    step = Triplet(**{"layers": (1,)} | settings).start(learner, batches, 1)
    learner.put([torch.tensor(NOW)])
    metrics = step.backward(OWN)
    assert batches.roles == [Role.BENIGN, Role.HARMFUL]
    assert not any(part._forward_hooks for part in learner.module.modules())
    return learner, metrics


def whole_loss(weight, *, alpha=0.5, beta=0.6, gamma=0.7):
    """The loss on the whole step in one expression, of which autograd takes the gradient."""
    start, extra = torch.tensor(START), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    harmful, before = extra + weight, extra + start
    center = harmful.mean(dim=0)
    stay = (weight - start).norm() - (1 - cosine_similarity(weight, center, dim=0)) + 2
    gather = (1 - cosine_similarity(harmful, center[None])) - (1 - cosine_similarity(harmful, before)) + 3
    first, second = log_softmax(start / 2, dim=0), log_softmax(weight / 2, dim=0)
    return alpha * stay / 2 + beta * gather.mean() + gamma * 4 * (first.exp() * (first - second)).sum()


@pytest.mark.parametrize("weights", [{}, {"alpha": 1.0, "gamma": 0.0}, {"alpha": 0.0, "beta": 2.0}])
def test_terms_are_those_computed_by_hand_and_the_gradient_passes_through_the_mean(weights):
    learner, metrics = stepped(**weights)

    assert float(metrics["benign_triplet"]) == pytest.approx(1.681449, rel=1e-6)
    assert float(metrics["harmful_triplet"]) == pytest.approx(2.430684, rel=1e-6)
    assert float(metrics["divergence"]) == pytest.approx(0.489837, rel=1e-5)
    weight = torch.tensor(NOW, requires_grad=True)
    (expected,) = torch.autograd.grad(whole_loss(weight, **weights), weight)
    # The loss of the refusals is w_1 - w_2.
    torch.testing.assert_close(torch.tensor(learner.written), expected + torch.tensor([1.0, -1.0]))
    assert float(metrics["triplet_gradient_norm"]) == pytest.approx(float(expected.norm()))


def test_published_form_counts_refusals_as_benign_and_does_not_learn_them():
    learner, metrics = stepped(refusals="retain")

    # The two more tokens have moved as the first has, so the mean stays; K is a sum over positions, of two examples.
    assert float(metrics["benign_triplet"]) == pytest.approx(1.681449, rel=1e-6)
    assert float(metrics["divergence"]) == pytest.approx(1.5 * 0.489837, rel=1e-5)
    weight = torch.tensor(NOW, requires_grad=True)
    (expected,) = torch.autograd.grad(whole_loss(weight, gamma=1.05), weight)
    torch.testing.assert_close(torch.tensor(learner.written), expected)


def test_terms_within_their_margins_have_no_gradient():
    learner, metrics = stepped(benign_margin=0.0, harmful_margin=0.0, alpha=0.0, gamma=0.0)

    assert float(metrics["harmful_triplet"]) == 0
    assert learner.written == pytest.approx([1, -1], abs=1e-6)


def test_published_layers_are_shares_of_the_depth():
    learner = ShiftLearner(*[START] * 32)

    assert Triplet().start(learner, Safety(BENIGN), 1)._layers == list(range(20, 31))
    with pytest.raises(ModelError, match="after 33 layers, but the model has 32"):
        Triplet(layers=(33,)).start(learner, Safety(BENIGN), 1)


def test_settings_out_of_range_are_reported():
    found = Triplet(alpha=-1, harmful_margin=-1, layers=(0,), benign_rows=0).problems()

    assert [problem.path for problem in found] == ["alpha", "harmful_margin", "benign_rows", "layers"]
