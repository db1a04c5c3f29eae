"""TAR by hand, on two weights w = (w1, w2) that are the model's logits for the tokens 0 (refuse) and 1 (comply).

With d = w1 - w2: the refusal's loss is log(1 + e^-d), the harmful one log(1 + e^d); the margin of a pair is d. The
gradient of the harmful loss is s(d) (1, -1), s the logistic function, so the first AdamW step goes eta (-1, 1).

Before alignment w = (0, 0), d = 0. At w = (3, 4), d = -1, one step of eta 0.5 leads to d = -2. With beta 1 the
preference's gradient there is -s(2) (1, -1), the alignment loss's at w is -s(1) (1, -1), and the drift is the length
of (3, 4), 5, with gradient (0.6, 0.8). With scales 4, 1 and 0.5: -(4 s(2) + s(1)) (1, -1) + (0.3, 0.4).
"""

import math
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from harness.corpora.batches import Pair, Pool, RoleBatches
from harness.corpora.encode import Encoded
from harness.corpora.examples import Role
from harness.defenses.tar import Tar
from harness.engine.seeding import derive
from harness.errors import ConfigError
from harness.protocols import Prediction
from harness.training.pieces import cut


def logistic(x):
    return 1 / (1 + math.exp(-x))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, rows):
        return rows + torch.cat([self.first, self.second])


class TwoLogits(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Layer()])

    def get_decoder(self):
        return self


class LogitLearner:
    """Satisfies ``protocols.Learner`` for ``TwoLogits``, with none of the product's arithmetic."""

    def __init__(self, *weights):
        self.module = TwoLogits()
        self.trainables = list(self.module.parameters())
        self.set(*weights)
        self.visited = []
        self.steps_taken = 0

    def set(self, *weights):
        for parameter, weight in zip(self.trainables, weights, strict=True):
            parameter.data.fill_(weight)

    def pieces(self, batch, *, like=None):
        return cut(batch, None, device=torch.device("cpu"), like=like)

    def predict(self, piece):
        batch = piece.batch
        targets = batch["labels"][:, 1:]
        states = self.module.layers[0](torch.zeros(*batch["labels"].shape, 2))
        return Prediction(states[:, :-1][targets != -100], targets[targets != -100], (targets != -100).sum())

    def accumulate(self, pieces, shares):
        (piece,) = pieces
        sums = shares(piece)
        return [each.detach() for each in sums], list(torch.autograd.grad(sums[0], self.trainables))

    def loss(self, piece):
        prediction = self.predict(piece)
        return cross_entropy(prediction.logits, prediction.targets)

    def gradient(self, batch):
        self.visited.append([parameter.item() for parameter in self.trainables])
        (loss,), gradient = self.accumulate(self.pieces(batch), lambda piece: (self.loss(piece),))
        return loss, gradient

    def norm(self, tensors):
        return torch.cat(list(tensors)).norm()

    @contextmanager
    def with_weights(self, values):
        kept = [parameter.item() for parameter in self.trainables]
        self.set(*(value.item() for value in values))
        yield
        self.set(*kept)

    def set_gradient(self, gradient):
        for parameter, part in zip(self.trainables, gradient, strict=True):
            parameter.grad = part.clone()


BARE = {"pair_batches": 1, "retain": "refusals", "alignment_share": 0.0, "closing_steps": 0, "weight_decay": 0.0}
"""A run that is neither aligned first nor closed, and retains the stage's own examples."""


def answers(token, rows=2):
    ids = torch.full((rows, 2), token)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([[-100, token]] * rows)}


class BatchProvider:
    def __init__(self, seed=0):
        self.roles = []
        self._seed = seed

    def derive(self, *names):
        return derive(self._seed, *names)

    def next(self, role):
        self.roles.append(role)
        return answers(1)

    def pair(self, role):
        self.roles.append(role)
        return Pair(harmful=answers(1), refusal=answers(0))


def started(settings, batches=None):
    learner = LogitLearner(0.0, 0.0)
    step = settings.start(learner, batches or BatchProvider(), 1)
    learner.set(3.0, 4.0)
    return learner, step


def written(learner):
    return [parameter.grad.item() for parameter in learner.trainables]


def test_tar_step_on_two_weights_writes_the_gradient_computed_by_hand():
    settings = Tar(**BARE, inner_steps=1, evaluate_every=1, learning_rates=(0.5,), beta=1.0, drift_scale=0.5)
    batches = BatchProvider()
    learner, step = started(settings, batches)

    metrics = step.backward(answers(0))

    pull = 4 * logistic(2) + logistic(1)
    assert written(learner) == pytest.approx([-pull + 0.3, pull + 0.4])
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {
            "loss": math.log(1 + math.e),
            "drift": 5.0,
            "adversary_loss": math.log(1 + math.exp(-1)),
            "tamper_loss": math.log(1 + math.exp(2)),
            "tamper_gradient_norm": math.sqrt(2) * logistic(2),
        },
        rel=1e-5,
    )
    assert batches.roles == [Role.HARMFUL, Role.HARMFUL], "the evaluation's pair is not the adversary's batch"


def test_tar_step_leaves_the_weights_untouched():
    learner, step = started(Tar(**BARE, inner_steps=4, learning_rates=(0.5,)))

    step.backward(answers(0))

    assert [parameter.item() for parameter in learner.trainables] == [3.0, 4.0]


def test_tar_step_draws_the_pair_and_the_adversarys_batches_from_one_group_without_a_row_twice():
    settings = Tar(**BARE, inner_steps=3, evaluate_every=1, harmful_batch_size=2)
    (need,) = settings.needs
    rows = [Encoded([place, 1], [-100, 1]) for place in range(11)]
    batches = RoleBatches({Role.HARMFUL: Pool(rows, need.batch_size, rows, need.disjoint_batches)}, pad_id=0, seed=0)
    _, step = started(settings, batches)
    visited = []
    batches.next, batches.pair = noted(batches.next, visited), noted(batches.pair, visited)

    # An epoch has five batches, so that the second step would begin with the last one.
    for _ in range(6):
        step.backward(answers(0))

    steps = [visited[start : start + 4] for start in range(0, 24, 4)]
    assert len(visited) == 24
    assert all(len({row for batch in batches_of_step for row in batch}) == 8 for batches_of_step in steps)


def noted(draw, visited):
    """Return a draw that notes the first tokens of the harmful rows that it gives."""

    def drawing(role):
        drawn = draw(role)
        visited.append(getattr(drawn, "harmful", drawn)["input_ids"][:, 0].tolist())
        return drawn

    return drawing


def adversary_path(difference, rate, steps):
    """Return the margins d after each AdamW step on log(1 + e^d), both weights moving alike in opposite directions."""
    found, first, second = [], 0.0, 0.0
    for taken in range(1, steps + 1):
        slope = logistic(difference)
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        corrected = (first / (1 - 0.9**taken)) / (math.sqrt(second / (1 - 0.999**taken)) + 1e-8)
        difference -= 2 * rate * corrected
        found.append(difference)
    return found


def test_tar_evaluates_along_the_adversarys_path_and_weighs_late_evaluations_more():
    settings = Tar(
        **BARE,
        inner_steps=6,
        evaluate_every=2,
        learning_rates=(0.3,),
        decay=0.2,
        beta=1.0,
        retain_scale=0.0,
        tamper_scale=2.0,
    )
    learner, step = started(settings)

    step.backward(answers(0))

    margins = adversary_path(-1.0, 0.3, 6)
    pull = sum(math.exp(0.2 * (taken - 6)) * logistic(-margins[taken - 1]) for taken in (2, 4, 6))
    assert written(learner) == pytest.approx([-2 * pull, 2 * pull], rel=1e-4)


def test_tar_draws_one_learning_rate_for_each_adversary_and_continues_after_a_resumption():
    settings = Tar(**BARE, inner_steps=1, evaluate_every=1, learning_rates=(0.25, 0.5, 1.0), beta=1.0)

    def rates(learner, step, times):
        found = []
        for _ in range(times):
            loss = float(step.backward(answers(0))["tamper_loss"])
            found.append((math.log(math.exp(loss) - 1) - 1) / 2)
        return found

    learner, step = started(settings)
    first = rates(learner, step, 6)
    state = step.state_dict()
    rest = rates(learner, step, 6)
    other, resumed = started(settings)
    resumed.load_state_dict(state)

    assert {round(rate, 3) for rate in first + rest} == {0.25, 0.5, 1.0}
    assert rates(other, resumed, 6) == pytest.approx(rest)


def test_tar_resumed_compares_with_the_weights_before_alignment_not_with_those_at_resumption():
    settings = Tar(**BARE, inner_steps=1, evaluate_every=1, learning_rates=(0.5,), beta=1.0)
    _, step = started(settings)
    late = LogitLearner(3.0, 4.0)
    resumed = settings.start(late, BatchProvider(), 1)

    resumed.load_state_dict(step.state_dict())

    assert float(resumed.backward(answers(0))["drift"]) == pytest.approx(5.0)


def test_tar_settings_out_of_range_are_all_reported():
    settings = Tar(
        **BARE, inner_steps=6, evaluate_every=4, learning_rates=(), decay=-1, tamper_scale=-1, drift_scale=-1, beta=0
    )

    assert [problem.path for problem in settings.problems()] == [
        "decay",
        "tamper_scale",
        "drift_scale",
        "beta",
        "learning_rates",
        "evaluate_every",
    ]
    assert not Tar().problems()


def test_tar_with_two_batches_of_pairs_averages_them_and_leaves_both_out_of_the_adversarys():
    settings = Tar(**BARE | {"pair_batches": 2}, inner_steps=1, evaluate_every=1, learning_rates=(0.5,), beta=1.0)
    batches = BatchProvider()
    _, step = started(settings, batches)

    metrics = step.backward(answers(0))

    # The pairs are alike here: their mean is that of the case by hand.
    assert float(metrics["tamper_loss"]) == pytest.approx(math.log(1 + math.exp(2)), rel=1e-5)
    assert float(metrics["tamper_gradient_norm"]) == pytest.approx(math.sqrt(2) * logistic(2), rel=1e-5)
    assert batches.roles == [Role.HARMFUL] * 3
    assert settings.needs[0].disjoint_batches == 3


def test_adversarys_weights_decay():
    settings = Tar(**BARE | {"weight_decay": 0.2}, inner_steps=1, evaluate_every=1, learning_rates=(0.5,), beta=1.0)
    _, step = started(settings)

    loss = float(step.backward(answers(0))["tamper_loss"])

    # AdamW scales (3, 4) by 1 - 0.5 * 0.2 before its step of 0.5: d = -0.9 - 1.
    assert loss == pytest.approx(math.log(1 + math.exp(1.9)), rel=1e-5)


def test_run_is_aligned_first_compares_with_the_weights_then_and_closes_with_retained_examples():
    settings = Tar(
        **BARE | {"retain": "benign", "alignment_share": 0.25, "closing_steps": 2},
        inner_steps=1, evaluate_every=1, learning_rates=(0.5,), beta=1.0, tamper_scale=0.0,
    )  # fmt: skip
    batches = BatchProvider()
    learner = LogitLearner(0.0, 0.0)
    step = settings.start(learner, batches, 8)
    found, drawn = [], []
    for number in range(8):
        learner.steps_taken = number
        learner.set(0.0, float(number))
        batches.roles.clear()
        found.append(step.backward(answers(0)))
        drawn.append(list(batches.roles))

    retained = [Role.BENIGN, Role.HARMFUL, Role.HARMFUL]
    assert drawn == [[], [], *[retained] * 4, [Role.BENIGN], [Role.BENIGN]]
    # The reference is (0, 2), the weights after the two steps of alignment.
    assert [float(metrics["drift"]) for metrics in found[2:6]] == pytest.approx([0, 1, 2, 3])
    assert all(list(metrics) == ["loss"] for metrics in (*found[:2], *found[6:]))
    # With d = -number: log(1 + e^-d) for the stage's own answer, token 0, and log(1 + e^d) for the benign one, token 1.
    assert float(found[1]["loss"]) == pytest.approx(math.log(1 + math.e), rel=1e-5)
    assert float(found[7]["loss"]) == pytest.approx(math.log(1 + math.exp(-7)), rel=1e-4)


def test_run_without_a_step_for_the_method_is_refused():
    with pytest.raises(ConfigError, match="4 leaves no step of the method: 4 of the 8 steps"):
        Tar(closing_steps=4).start(LogitLearner(0.0, 0.0), BatchProvider(), 8)
