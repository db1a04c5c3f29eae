"""The losses of routed experts: numbers computed by hand from the published formulas and from the corrected ones."""

import math
from random import Random

import pytest
import torch

from harness.mechanisms.routing import Pair, distance, gate_loss, published_drift, row_shares, shuffled

SHARES = torch.tensor([[0.66524, 0.24473, 0.09003]])


@pytest.mark.parametrize(("published", "expected"), [(True, 0.79719), (False, 0.40761)])
def test_gating_loss_of_the_first_expert_in_both_forms(published, expected):
    loss = gate_loss(SHARES, torch.tensor([0]), published=published)

    assert loss.tolist() == pytest.approx([expected], abs=2e-5)


def test_published_gating_loss_is_bounded_by_the_second_softmax():
    certain = torch.eye(3)[:1]

    right, wrong = (gate_loss(certain, torch.tensor([source]), published=True) for source in (0, 1))

    assert (right.item(), wrong.item()) == pytest.approx((math.log(math.e + 2) - 1, math.log(math.e + 2)), abs=1e-6)


def test_shares_of_a_row_are_those_of_its_tokens_and_layers_without_padding():
    first = torch.tensor([[[2.0, 1.0, 0.0], [9.0, 0.0, 0.0]], [[0.0, 0.0, 0.0], [0.0, 0.0, math.log(2)]]])
    second = torch.zeros(2, 2, 3)

    shares = row_shares([first, second], torch.tensor([[1, 0], [1, 1]]))

    # Row 0: the mean of the softmax of (2, 1, 0) and of thirds. Row 1: of thirds three times, and (1/4, 1/4, 1/2).
    assert shares[0].tolist() == pytest.approx([(0.66524 + 1 / 3) / 2, (0.24473 + 1 / 3) / 2, 0.21168], abs=1e-5)
    assert shares[1].tolist() == pytest.approx([(1 + 1 / 4) / 4, (1 + 1 / 4) / 4, (1 + 1 / 2) / 4])


def test_published_drift_is_a_norm_with_a_gradient_of_constant_length():
    factor = torch.tensor([3.0, 4.0], requires_grad=True)

    value = 1e-3 * published_drift([factor], layers=32)
    (gradient,) = torch.autograd.grad(value, factor)

    assert value.item() == pytest.approx(1.5625e-4)
    assert gradient.tolist() == pytest.approx([3.125e-5 * 0.6, 3.125e-5 * 0.8])


def test_corrected_drift_is_the_squared_distance_of_the_scaled_products():
    # Two experts with matrices of two rows and one column: scale 0.5, [3, 4] from [1, 0], and one that did not move.
    first = Pair(torch.tensor([[[1.0], [0.0]], [[5.0], [6.0]]]), torch.tensor([[[1.0]], [[2.0]]]))
    b = torch.tensor([[[3.0], [4.0]], [[5.0], [6.0]]], requires_grad=True)

    value = distance((b, first.a), first, 0.5)
    (gradient,) = torch.autograd.grad(value, b)

    assert value.item() == pytest.approx(0.25 * (2**2 + 4**2))
    assert gradient.flatten().tolist() == pytest.approx([0.5 * 2, 0.5 * 4, 0.0, 0.0], abs=1e-5)


def test_shuffled_labels_are_as_many_of_each():
    sources = [0] * 5 + [1] * 3 + [2] * 2

    found = shuffled(sources, Random(1))

    assert sorted(found) == sources
    assert found != sources
