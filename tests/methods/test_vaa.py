"""VAA by hand: the logits of every position are (w_1, w_2); example 0 has two tokens 0, example 1 one token 1.

At w = (0, 0) the loss of a token is log 2; its gradient is (-1/2, 1/2) for a token 0 and (1/2, -1/2) for a token 1.
Along the former, of the norm sqrt(1/2), w moves by rho = 0.4 to (-0.2828, 0.2828): the probability of a token 0 is
then 1 / (1 + exp(0.5657)) = 0.362231, its loss 1.015473 and its gradient (-0.637769, 0.637769).

With p = 1/2, a loss of 2 and the rate 0.007 the vulnerable group's share becomes 0.5 exp(0.028) = 0.514198, so p is
0.514198 / 1.014198 = 0.507000; drawn the other group, it is 0.5 / 1.014198 = 0.493000.
"""

import math

import pytest
import torch
from test_dpo import Logits
from user_learner import CutLearner

from harness.corpora.encode import PLACES
from harness.corpora.examples import Role
from harness.defenses.vaa import VAA, probability
from harness.training.budget import Budget

VULNERABLE, OTHER = 4, 0
"""Seeds whose first random number is below 1/2, and above."""


def examples(*places):
    """Return a batch of some of the two examples."""
    labels = torch.tensor([[-100, 0, 0], [-100, 1, -100]])[list(places)]
    return {"labels": labels, "input_ids": torch.zeros_like(labels), PLACES: torch.tensor(places)}


class Batches:
    def __init__(self, seed=VULNERABLE):
        self.roles, self._seed = [], seed

    def derive(self, *names):
        return self._seed

    def next(self, role):
        self.roles.append(role)
        # Harmful answers consist of tokens 1.
        return examples(0, 1) if role is Role.REFUSAL else {**examples(1), PLACES: None}


class Learner(CutLearner):
    def __init__(self):
        super().__init__(Logits())
        self.example_count = 2

    def pieces(self, batch):
        return super().pieces({name: tensor for name, tensor in batch.items() if name != PLACES})


def started(seed, *, taken=0, **settings):
    learner = Learner()
    learner.steps_taken = taken
    step = VAA(**settings).start(learner, Batches(seed), 10)
    step._vulnerable = torch.tensor([True, False])
    return learner, step


@pytest.mark.parametrize(("seed", "written"), [(VULNERABLE, [-0.5, 0.5]), (OTHER, [0.5, -0.5])])
def test_step_uses_the_examples_of_the_drawn_group(seed, written):
    learner, step = started(seed)

    metrics = step.backward(examples(0, 1))

    assert learner.written == pytest.approx(written)
    assert float(metrics["loss"]) == pytest.approx(math.log(2))
    assert metrics["perturbed"] == 0


def test_gradient_is_taken_at_perturbed_weights_with_a_probability_that_rises():
    learner, step = started(VULNERABLE, taken=10)

    metrics = step.backward(examples(0, 1))

    assert learner.written == pytest.approx([-0.637769, 0.637769], rel=1e-5)
    assert metrics["perturbed"] == 1
    assert float(metrics["loss"]) == pytest.approx(math.log(2))
    grown = 0.5 * math.exp(0.007 * 1.015473 / 0.5)
    assert float(metrics["vulnerable_probability"]) == pytest.approx(grown / (grown + 0.5), rel=1e-5)
    assert not any(bool(weight.detach().any()) for weight in learner.trainables)


def test_group_without_an_example_in_the_batch_leaves_the_probability_and_uses_all():
    learner, step = started(VULNERABLE)

    metrics = step.backward(examples(1))

    assert learner.written == pytest.approx([0.5, -0.5])
    assert float(metrics["vulnerable_probability"]) == 0.5


def test_probability_follows_the_loss_of_the_group_that_was_drawn():
    half, two = torch.tensor(0.5), torch.tensor(2.0)

    assert float(probability(half, two, torch.tensor(True), 0.007)) == pytest.approx(0.507000, abs=1e-6)
    assert float(probability(half, two, torch.tensor(False), 0.007)) == pytest.approx(0.493000, abs=1e-6)
    assert float(probability(half, two, torch.tensor(True), 10.0)) == pytest.approx(0.9)
    assert float(probability(half, two, torch.tensor(False), 10.0)) == pytest.approx(0.1)


def test_vulnerable_examples_are_those_whose_loss_rises_most_under_harmful_training():
    learner, batches = Learner(), Batches()
    settings = VAA(proxy_epochs=2, proxy_steps=3, budget=Budget(batch_size=2, learning_rate=0.1))
    step = settings.start(learner, batches, 10)

    step.backward(examples(0, 1))

    # More of tokens 1 raises the loss of tokens 0.
    assert step._vulnerable.tolist() == [True, False]
    assert batches.roles == [Role.REFUSAL] * 3 + [Role.HARMFUL] * 3
    assert not any(bool(weight.detach().any()) for weight in learner.trainables)
    step.backward(examples(0, 1))
    assert len(batches.roles) == 6, "the groups are found once"


def test_resumed_run_has_the_groups_and_the_probability():
    _, step = started(VULNERABLE, taken=10)
    step.backward(examples(0, 1))
    _, resumed = started(OTHER)
    resumed._vulnerable = None

    resumed.load_state_dict(step.state_dict())

    assert torch.equal(resumed._p, step._p)
    assert resumed._vulnerable.tolist() == [True, False]


def test_settings_out_of_range_are_reported():
    found = VAA(rho=0.0, lamb=2.0, p_learning_rate=-1, vulnerable_share=2.0, proxy_steps=0).problems()

    assert {problem.path for problem in found} == {"rho", "lamb", "p_learning_rate", "vulnerable_share", "proxy_steps"}
