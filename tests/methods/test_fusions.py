"""Mean, sum and TIES of experts, by hand on matrices of two rows."""

import pytest
import torch

from harness.engine.build import build
from harness.errors import ConfigError
from harness.fusions.mean import Mean
from harness.fusions.sum import Sum
from harness.fusions.ties import Ties, of_rank
from harness.protocols import Product

LAYER = "model.layers.0.mlp.up_proj"


def expert(b, a):
    """An expert that changes one matrix by the outer product of two vectors."""
    return {LAYER: Product(torch.tensor(b)[:, None], torch.tensor(a)[None])}


def whole(change):
    """An expert that changes one matrix by any matrix."""
    matrix = torch.tensor(change)
    return {LAYER: Product(matrix, torch.eye(matrix.shape[1]))}


def product(fused):
    b, a = fused.products[LAYER]
    return b @ a


FIRST, SECOND = expert([1.0, 2.0], [3.0, 0.0]), expert([0.0, 4.0], [1.0, 1.0])
"""The changes [[3, 0], [6, 0]] and [[0, 0], [4, 4]]."""


def test_mean_is_that_of_the_changes_and_not_of_the_factors():
    fused = Mean().fuse([FIRST, SECOND])

    # The mean of the factors would give [0.5, 3] x [2, 0.5] = [[1, 0.25], [6, 1.5]].
    torch.testing.assert_close(product(fused), torch.tensor([[1.5, 0.0], [5.0, 2.0]]))
    assert fused.products[LAYER].a.shape == (2, 2)


def test_mean_of_one_expert_is_the_expert_bit_for_bit():
    fused = Mean().fuse([SECOND])

    assert all(torch.equal(one, other) for one, other in zip(fused.products[LAYER], SECOND[LAYER], strict=True))


@pytest.mark.parametrize(("scale", "expected"), [(1.0, [[3.0, 0.0], [10.0, 4.0]]), (0.5, [[1.5, 0.0], [5.0, 2.0]])])
def test_sum_is_scaled_task_arithmetic(scale, expected):
    torch.testing.assert_close(product(Sum(scale=scale).fuse([FIRST, SECOND])), torch.tensor(expected))


# Of four entries half are kept: 4, 2 | 3, -2 | -5, -1. Signs of the sums: (4 - 5) -, 2 + (-2) = 0 +, 3 +, -1 -.
THREE = [
    whole([[4.0, 2.0], [1.0, 0.5]]),
    whole([[1.0, -2.0], [3.0, 0.5]]),
    whole([[-5.0, 0.0], [0.5, -1.0]]),
]


def test_ties_trims_elects_a_sign_for_each_entry_and_averages_what_agrees():
    fused = Ties(density=0.5).fuse(THREE)

    torch.testing.assert_close(product(fused), torch.tensor([[-5.0, 2.0], [3.0, -1.0]]))
    assert fused.facts == {"rank": 6, "lost_norm": 0.0}


def test_ties_that_keeps_everything_averages_the_entries_of_the_elected_sign():
    # Signs of the sums 0, 0, 4.5, 0: +, +, +, +.
    fused = Ties(density=1.0, scale=2.0).fuse(THREE)

    torch.testing.assert_close(product(fused), 2 * torch.tensor([[2.5, 2.0], [1.5, 0.5]]))


def test_ties_of_a_lower_rank_states_the_share_of_the_norm_that_is_lost():
    fused = Ties(density=1.0, rank=1).fuse([whole([[4.0, 0.0], [0.0, 3.0]])])

    torch.testing.assert_close(product(fused), torch.tensor([[4.0, 0.0], [0.0, 0.0]]))
    assert fused.facts == {"rank": 1, "lost_norm": pytest.approx(0.6)}


def test_closest_product_of_more_than_full_rank_is_exact_and_padded():
    matrix = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, -1.0]])

    part, lost = of_rank(matrix, 5)

    assert (part.b.shape, part.a.shape, lost) == ((2, 5), (5, 3), 0.0)
    torch.testing.assert_close(part.b @ part.a, matrix)


@pytest.mark.parametrize("fusion", [Mean(), Sum(scale=0.7), Ties(density=0.5)])
def test_order_of_the_experts_changes_nothing_but_rounding(fusion):
    torch.testing.assert_close(product(fusion.fuse(THREE)), product(fusion.fuse(THREE[::-1])))


@pytest.mark.parametrize(("cls", "data"), [(Sum, {"scale": 0}), (Ties, {"density": 1.5}), (Ties, {"rank": 0})])
def test_setting_out_of_range_is_refused(cls, data):
    with pytest.raises(ConfigError, match=f"`{next(iter(data))}`"):
        build(cls, data)
