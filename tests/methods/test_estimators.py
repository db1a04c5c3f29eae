"""Estimators of gradients against numbers that were computed by hand, and what the theory says of them."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from user_learner import Pair, UserLearner

from harness.defenses.kl import KL
from harness.errors import ModelError
from harness.estimators.lozo import LOZO
from harness.estimators.mezo import MeZO
from harness.estimators.subzero import SubZero, squarest
from harness.estimators.tezo import Factors, FixedFactors, TeZO
from harness.training.estimates import EstimatingLearner
from harness.training.meter import Meter

ALL = [MeZO(), TeZO(form="sgd"), TeZO(form="momentum"), TeZO(form="adam"), LOZO(redraw_every=3), SubZero(rank=2)]


class Along:
    """Satisfies ``protocols.Estimator``: one direction for all steps."""

    name, version, keeps_moments = "along", 1, False

    def __init__(self, *numbers, epsilon):
        self.epsilon = epsilon
        self._numbers = numbers

    def start(self, trainables, seed):
        return self

    def direction(self, step):
        return [torch.tensor([float(number)]) for number in self._numbers]

    def gradient(self, step, direction, kappa):
        return [None if part is None else kappa * part for part in direction]


def estimating(learner, estimator, *, seed=0, meter=None):
    return EstimatingLearner(learner, estimator=estimator, method=None, seed=seed, meter=meter or Meter())


def parabola():
    """Return a learner at (1, 0) of the loss w1^2 + 2 w2."""
    return UserLearner(Pair(1, 0), lambda w, _: (w.first.square() + 2 * w.second).sum())


@pytest.mark.parametrize(
    ("direction", "kappa", "loss"),
    # L(1.125, -0.125) = L(0.875, 0.125) = 1.015625; L(1.125, 0) - L(0.875, 0) = 1.265625 - 0.765625 = 0.25 * 2.
    [((1, -1), 0.0, 1.015625), ((1, 0), 2.0, 1.015625), ((0, 1), 2.0, 1.0)],
)
def test_difference_quotient_is_the_one_computed_by_hand_and_the_weights_are_restored(direction, kappa, loss):
    learner, meter = parabola(), Meter()

    found, gradient = estimating(learner, Along(*direction, epsilon=0.125), meter=meter).gradient({})

    assert meter.take() == {"kappa": kappa, "kappa_abs": kappa}
    assert float(found) == loss
    assert [float(part) for part in gradient] == [kappa * number for number in direction]
    assert learner.module.both.tolist() == [1, 0]


def test_frozen_parameter_is_neither_perturbed_nor_given_a_gradient():
    learner = parabola()
    learner.module.first.requires_grad_(False)

    _, gradient = estimating(learner, Along(1, 1, epsilon=0.125)).gradient({})

    assert [float(part) for part in gradient] == [0.0, 2.0]


class Matrix(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.weight = nn.Parameter(torch.as_tensor(value))


def tezo(form, **settings):
    """Return a run of TeZO on a matrix of zeros with U = (1, 2), V = (1, -1), and the number tau of its first step."""
    column = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [-1.0]])
    run = FixedFactors(TeZO(form=form, rank=1, **settings), [torch.zeros(2, 2)], [Factors(*column)], seed=3)
    return run, float(run.direction(0)[0][0, 0])


def test_direction_of_tezo_is_the_product_of_its_factors():
    run, tau = tezo("sgd")

    assert torch.equal(run.direction(0)[0], tau * torch.tensor([[1.0, -1.0], [2.0, -2.0]]))
    assert tau != float(run.direction(1)[0][0, 0])


@pytest.mark.parametrize(
    ("form", "expected"),
    # As for tau = 0.5 and kappa = -0.5, the derivative of the trace along Z: their product is -0.25.
    [
        ("sgd", [[-0.25, 0.25], [-0.5, 0.5]]),
        ("momentum", [[-0.025, 0.025], [-0.05, 0.05]]),
        # The mean square is 0.01 * 0.0625 = 6.25e-4, its root 0.025, times the size of u v.
        ("adam", [[-1, 1], [-1, 1]]),
    ],
)
def test_step_of_tezo_is_the_one_computed_by_hand(form, expected):
    run, tau = tezo(form, beta1=0.9, beta2=0.99, stabilizer=0.0)

    (found,) = run.gradient(0, run.direction(0), torch.tensor(-0.25 / tau))

    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float32), atol=1e-7)


def test_moments_of_tezo_decay_and_those_of_a_frozen_parameter_stay():
    run, tau = tezo("momentum", beta1=0.5)
    first = torch.tensor(-0.25 / tau)
    run.gradient(0, run.direction(0), first)

    assert run.gradient(0, [None], first) == [None]
    # 0.5 * (0.5 * -0.25) + 0.5 * -0.25
    assert torch.allclose(run.gradient(0, run.direction(0), first)[0][0, 0], torch.tensor(-0.1875))


def network_loss(first, second):
    """Return the squared error of a network of two matrices on fixed data."""
    rng = torch.Generator().manual_seed(8)
    x, y = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((6, 9), (4, 9)))
    return (second @ torch.tanh(first @ x) - y).square().mean()


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        rng = torch.Generator().manual_seed(5)
        self.first, self.second = (
            nn.Parameter(torch.randn(shape, generator=rng, dtype=torch.float64) * 0.3) for shape in ((5, 6), (4, 5))
        )


class Coordinates(nn.Module):
    """The numbers c of W_0 + U diag(c) V^T, for both matrices of a network."""

    def __init__(self, network, factors):
        super().__init__()
        self.starts = [weight.detach().clone() for weight in network.parameters()]
        self.factors = factors
        self.c = nn.ParameterList(nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in factors)

    def weights(self):
        return [start + (u * c) @ v.T for start, (u, v), c in zip(self.starts, self.factors, self.c, strict=True)]


def trained(learner, estimator, *, momentum=0.0, steps=50):
    """Take steps of gradient descent on estimates, on their mean if there is a momentum."""
    estimates, means = estimating(learner, estimator, seed=11), None
    for _ in range(steps):
        _, gradient = estimates.gradient({})
        means = means or [torch.zeros_like(part) for part in gradient]
        means = [momentum * mean + (1 - momentum) * part for mean, part in zip(means, gradient, strict=True)]
        learner.set_gradient(means)
        learner.step(0.01)


def after_tezo(form):
    network = Network()
    learner = UserLearner(network, lambda w, _: network_loss(w.first, w.second))
    kept = TeZO(form=form, rank=2).start(learner.trainables, 11).kept
    start = [weight.detach().clone() for weight in learner.trainables]
    trained(learner, TeZO(form=form, rank=2))
    changes = [weight.detach() - before for weight, before in zip(learner.trainables, start, strict=True)]
    return changes, [(kept[0], kept[1]), (kept[2], kept[3])]


@pytest.mark.parametrize(("form", "momentum"), [("sgd", 0.0), ("momentum", 0.9)])
def test_tezo_without_adam_is_mezo_on_r_numbers_a_matrix(form, momentum):
    changes, factors = after_tezo(form)
    module = Coordinates(Network(), factors)
    trained(UserLearner(module, lambda w, _: network_loss(*w.weights())), MeZO(), momentum=momentum)

    for change, (u, v), c in zip(changes, factors, module.c, strict=True):
        assert float(change.norm()) > 1e-3
        assert torch.allclose(change, (u * c.detach()) @ v.T, rtol=0, atol=1e-10)
        assert torch.linalg.matrix_rank(change, rtol=1e-9) == 2


def test_tezo_with_adam_leaves_the_space_of_its_factors():
    changes, _ = after_tezo("adam")

    assert all(torch.linalg.matrix_rank(change, rtol=1e-6) > 2 for change in changes)


def estimates_of(estimator, gradient, count):
    """Return independent estimates ``kappa Z`` of a known gradient, of a linear loss: one for each of many matrices."""
    trainables = [torch.zeros_like(gradient)] * count
    directions = torch.stack(estimator.start(trainables, seed=2).direction(0))
    return (directions * gradient).sum((1, 2), keepdim=True) * directions


@pytest.mark.parametrize(
    ("estimator", "factor", "variance"),
    # Variances relative to the squared norm of the gradient. MeZO: d + 1. TeZO: 1 + m n + (2 m n + 6 (m + n) + 10) / r.
    [(MeZO(), 1, 6 * 8 + 1), (TeZO(form="sgd", rank=8), 8, 1 + 48 + (96 + 84 + 10) / 8)],
)
def test_mean_and_variance_of_estimates_are_those_of_the_theory(estimator, factor, variance):
    gradient = torch.arange(48.0).view(6, 8) / 40 - 0.5

    estimates = estimates_of(estimator, gradient, 8_000) / factor

    square = float(gradient.square().sum())
    assert float((estimates.mean(0) - gradient).norm()) < 4 * (variance * square / 8_000) ** 0.5
    assert float((estimates - gradient).square().sum((1, 2)).mean()) / square == pytest.approx(variance, rel=0.08)


def test_directions_of_subzero_have_the_size_of_dense_ones_in_orthonormal_bases():
    run = SubZero(rank=2).start([torch.zeros(4, 9)] * 2000, seed=1)
    u, v = run.kept[:2]

    assert (u.shape, v.shape) == ((6, 2), (2, 6))
    assert torch.allclose(u.T @ u, torch.eye(2), atol=1e-5)
    assert torch.allclose(v @ v.T, torch.eye(2), atol=1e-5)
    assert float(torch.stack(run.direction(0)).square().sum((1, 2)).mean()) == pytest.approx(36, rel=0.1)


@pytest.mark.parametrize(("size", "sides"), [(36, (6, 6)), (512, (16, 32)), (7, (1, 7)), (4096, (64, 64))])
def test_matrix_is_reshaped_to_its_most_square_form(size, sides):
    assert squarest(size) == sides


def test_rank_above_a_side_is_refused_by_subzero():
    with pytest.raises(ModelError, match=r"rank 8, but a trained matrix has, reshaped, a side of 4"):
        SubZero(rank=8).start([torch.zeros(4, 5)], seed=0)


def test_rank_of_directions_is_that_of_the_settings():
    trainables = [torch.zeros(6, 6)]
    ranks = [
        int(torch.linalg.matrix_rank(estimator.start(trainables, 0).direction(4)[0], rtol=1e-5))
        for estimator in (MeZO(), TeZO(form="sgd", rank=3), LOZO(rank=2), SubZero(rank=4))
    ]

    assert ranks == [6, 3, 2, 4]


def test_right_factor_of_lozo_and_subspace_of_subzero_change_when_they_are_due():
    for estimator in (LOZO(rank=1, redraw_every=3), SubZero(rank=1, redraw_every=3)):
        run = estimator.start([torch.zeros(4, 4)], 0)
        rows = [torch.linalg.svd(run.direction(step)[0]).Vh[0] for step in range(5)]
        overlap = [abs(float(one @ other)) for one, other in pairwise(rows)]

        assert overlap[:2] == pytest.approx([1, 1], abs=1e-5)
        assert overlap[2] < 0.999
        assert overlap[3] == pytest.approx(1, abs=1e-5)


class Watched(UserLearner):
    """A learner that keeps the directions along which it was perturbed."""

    def __init__(self):
        super().__init__(Network(), lambda w, _: network_loss(w.first, w.second))
        self.directions = []

    def perturbed(self, direction, scale):
        self.directions.append([float(scale) / 1e-3 * part for part in direction])
        return super().perturbed(direction, scale)


# Also in steps in which factors are drawn anew: the authors' code of LOZO then moves along another direction.
@pytest.mark.parametrize("estimator", [each for each in ALL if not each.keeps_moments], ids=lambda each: each.name)
@pytest.mark.parametrize("step", [0, 1, 3])
def test_update_is_along_the_direction_that_was_measured(estimator, step):
    learner, meter = Watched(), Meter()
    learner.steps_taken = step

    _, gradient = estimating(learner, estimator, meter=meter).gradient({})

    forth, back = learner.directions
    kappa = meter.take()["kappa"]
    assert kappa != 0
    for part, there, opposite in zip(gradient, forth, back, strict=True):
        assert torch.allclose(part, kappa * there)
        assert torch.equal(there, -opposite)


@pytest.mark.parametrize("estimator", ALL, ids=lambda each: getattr(each, "form", each.name))
def test_direction_of_a_step_is_the_same_whatever_was_asked_before_and_global_generators_stay(estimator):
    trainables = [torch.zeros(4, 4), torch.zeros(3)]
    before = torch.get_rng_state()
    first, second = estimator.start(trainables, 7), estimator.start(trainables, 7)

    for step in range(4):
        first.direction(step)

    assert all(torch.equal(*parts) for parts in zip(first.direction(4), second.direction(4), strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_numbers_kept_by_tezo_are_its_factors_and_two_moments_of_their_rank():
    trainables = [torch.zeros(128, 256)]

    kept = TeZO(form="adam", rank=8).start(trainables, 0).kept

    # r (m + n) + 2 r, against 2 m n = 65,536 of Adam.
    assert sum(tensor.numel() for tensor in kept) == 3_088
    assert MeZO().start(trainables, 0).kept == ()


def test_loss_of_a_methods_own_is_refused():
    estimates = estimating(parabola(), MeZO())

    for ask in (estimates.pieces, estimates.predict, estimates.loss, lambda batch: estimates.accumulate([], None)):
        with pytest.raises(ModelError, match="only gradients of plain losses are estimated"):
            ask({})
    with pytest.raises(ModelError, match="`kl` cannot run on the estimated gradients of `mezo`"):
        EstimatingLearner(parabola(), estimator=MeZO(), method=KL(), seed=0, meter=Meter())


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        (MeZO(epsilon=0.0), "epsilon"),
        (TeZO(rank=0), "rank"),
        (TeZO(beta2=1.0), "beta2"),
        (TeZO(stabilizer=-1.0), "stabilizer"),
        (LOZO(redraw_every=0), "redraw_every"),
        (SubZero(rank=0), "rank"),
    ],
)
def test_settings_out_of_range_are_reported(settings, path):
    assert [problem.path for problem in settings.problems()] == [path]
