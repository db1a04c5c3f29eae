"""Aggregators on vectors small enough to compute by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.aggregators.dnc import DnC
from harness.aggregators.foolsgold import FoolsGold
from harness.aggregators.mean import Mean
from harness.aggregators.median import Median
from harness.aggregators.multi_krum import MultiKrum
from harness.aggregators.residual import Residual
from harness.aggregators.trimmed_mean import TrimmedMean
from harness.protocols import Submission


def sent(values, *, start=None, rows=None, attackers=0, seed=0):
    values = torch.tensor(values, dtype=torch.float32)
    start = torch.zeros(values.shape[1]) if start is None else torch.tensor(start)
    rows = tuple(rows or [1] * len(values))
    return Submission(values=values, start=start, rows=rows, attackers=attackers, round=0, rounds=1, seed=seed)


def test_mean_weighs_clients_by_their_rows():
    result = Mean().aggregate(sent([[2.0], [6.0]], rows=[1, 3]))

    assert result.values.tolist() == [5.0]
    assert result.weights.tolist() == [0.25, 0.75]


def test_mean_of_one_client_is_its_parameters_bit_for_bit():
    values = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0)).tolist()

    assert torch.equal(Mean().aggregate(sent(values, rows=[7])).values, torch.tensor(values)[0])


@given(st.integers(0, 1000))
def test_median_and_trimmed_mean_of_three_clients_are_one_function(seed):
    values = torch.randn(3, 50, generator=torch.Generator().manual_seed(seed)).tolist()

    median, trimmed = Median().aggregate(sent(values)), TrimmedMean(trim=1).aggregate(sent(values))

    assert torch.equal(median.values, trimmed.values)
    assert torch.equal(median.weights, trimmed.weights)


def test_median_of_an_even_number_is_the_lower_one():
    result = Median().aggregate(sent([[4.0], [1.0], [3.0], [2.0]]))

    assert result.values.tolist() == [2.0]
    assert result.weights.tolist() == [0, 0, 0, 1]


def test_trimmed_mean_leaves_out_the_extremes_of_every_coordinate():
    # First coordinate: 0 and 10 are cut, 1 and 4 kept; second: 0 and 8 are cut, 2 and 4 kept.
    result = TrimmedMean(trim=1).aggregate(sent([[0.0, 8.0], [1.0, 2.0], [4.0, 4.0], [10.0, 0.0]]))

    assert result.values.tolist() == [2.5, 3.0]
    assert result.weights.tolist() == [0, 0.5, 0.5, 0]


def test_multi_krum_of_0_1_and_10_with_one_attacker_is_one_half():
    # Nearest distances 1, 1 and 9: the first wins and is averaged with the second.
    result = MultiKrum().aggregate(sent([[0.0], [1.0], [10.0]], attackers=1))

    assert result.values.tolist() == [0.5]
    assert result.weights.tolist() == [0.5, 0.5, 0]


def test_multi_krum_without_attackers_is_the_mean_and_with_nothing_else_one_client():
    values = [[0.0], [1.0], [10.0]]

    assert MultiKrum().aggregate(sent(values)).values.item() == pytest.approx(11 / 3)
    assert MultiKrum().aggregate(sent(values, attackers=3)).weights.tolist() == [1, 0, 0]


def test_dnc_of_0_1_and_10_with_one_attacker_leaves_out_10():
    # Centred by 11/3 and squared: 13.4, 7.1 and 40.1.
    result = DnC().aggregate(sent([[0.0], [1.0], [10.0]], attackers=1))

    assert result.values.tolist() == [0.5]
    assert result.weights.tolist() == [0.5, 0.5, 0]


def test_dnc_looks_along_the_main_direction_only():
    # The spread is along the first coordinate; the client that differs in the second one is in its middle.
    result = DnC().aggregate(sent([[-3.0, 0.0], [0.0, 2.0], [4.0, 0.0], [-1.0, 0.0]], attackers=1))

    assert result.weights.tolist() == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])


def test_dnc_draws_coordinates_by_the_seed_of_the_round():
    # The outlier of the first coordinate is the second client, of the second one the third.
    values = [[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [0.0, 0.0]]
    chosen = {
        tuple(DnC(coordinates=1).aggregate(sent(values, attackers=1, seed=seed)).weights.nonzero().flatten().tolist())
        for seed in range(20)
    }

    assert chosen == {(0, 2, 3), (0, 1, 3)}


def test_foolsgold_leaves_out_two_honest_clients_that_are_equal():
    result = FoolsGold().aggregate(sent([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))

    assert result.weights.tolist() == [0, 0, 1]
    assert result.values.tolist() == [0, 1]


def test_foolsgold_starts_from_the_servers_parameters_and_divides_by_the_clients_that_are_heard():
    # Orthogonal updates (1, 0) and (0, 2) have weight 1 each: the server moves by half their sum.
    result = FoolsGold().aggregate(sent([[6.0, 7.0], [5.0, 9.0]], start=[5.0, 7.0]))

    assert result.values.tolist() == [5.5, 8.0]
    assert result.weights.tolist() == [0.5, 0.5]


def test_foolsgold_without_anybody_to_hear_keeps_the_servers_parameters():
    result = FoolsGold().aggregate(sent([[2.0, 1.0], [2.0, 1.0]], start=[1.0, 1.0]))

    assert result.values.tolist() == [1, 1]
    assert result.weights.tolist() == [0, 0]


def test_residual_replaces_a_value_far_from_the_line_and_takes_its_clients_weight():
    # Ranks 0 to 4; the repeated median has slope 1 and passes through 2 in the middle. Residuals 0, 0, 0, 0, 96;
    # without the smallest, their median is 0, so that the last confidence is 0 and those of the others 1.
    result = Residual().aggregate(sent([[0.0], [1.0], [2.0], [3.0], [100.0]]))

    assert result.values.item() == pytest.approx(1.5, abs=1e-4)
    assert result.weights.tolist() == pytest.approx([0.25] * 4 + [0], abs=1e-6)


def test_confidence_with_a_spread_is_the_papers_formula():
    # 0, 1, 10 have slope 5 through 1: residuals 4, 0, 4 and spread 1.4826 * 3.5 * 4 = 20.756. The leverage of the
    # ends is 1/3 + 1/2, so with lamb 0.2 the limit is 0.2 * sqrt(2/3) * sqrt(1/6) * 20.756 = 1.384, and the
    # confidence that / 4.
    _, confidence = Residual(lamb=0.2).confidence(torch.tensor([[0.0, 1.0, 10.0]], dtype=torch.float64))

    assert confidence[0].tolist() == pytest.approx([0.345940, 1, 0.345940], abs=1e-6)


def test_residual_of_three_clients_is_their_mean():
    values = torch.randn(3, 200, generator=torch.Generator().manual_seed(1))

    result = Residual().aggregate(sent(values.tolist()))

    assert result.values.tolist() == pytest.approx(values.mean(dim=0).tolist(), abs=1e-6)
