"""LoX by hand: V = diag(3, 1) extrapolated once along its first direction is diag(6, 1), along both diag(6, 2)."""

import pytest
import torch
from adapted import AlignedLearner, adapted, product
from hypothesis import given
from hypothesis import strategies as st

from harness.defenses.lox import LoX

V = ([[3.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]])


def finished(factors, *, alpha=None, **settings):
    module = adapted({"q": factors}, alpha=alpha)
    return module, LoX(**settings).start(AlignedLearner(module, {}), None, 10).finish()


@pytest.mark.parametrize(
    ("settings", "expected", "share"),
    [
        ({"rank": 1}, [[6, 0], [0, 1]], 0.9),
        ({"rank": 2}, [[6, 0], [0, 2]], 1),
        ({}, [[6, 0], [0, 2]], 1),
        ({"rank": 1, "coefficient": 0.5}, [[4.5, 0], [0, 1]], 0.9),
        ({"coefficient": 0.0}, [[3, 0], [0, 1]], 1),
    ],
)
def test_change_is_extrapolated_along_its_main_directions(settings, expected, share):
    module, facts = finished(V, **settings)

    torch.testing.assert_close(product(module, "q"), torch.tensor(expected, dtype=torch.float32))
    assert facts == {"extrapolated_share": pytest.approx(share)}


@given(seed=st.integers(0, 1000), rank=st.integers(1, 3))
def test_extrapolation_is_that_of_the_whole_matrix(seed, rank):
    rng = torch.Generator().manual_seed(seed)
    a, b = torch.randn(3, 6, generator=rng), torch.randn(5, 3, generator=rng)
    v = 2 * b @ a
    u, singular, vh = torch.linalg.svd(v)

    module, _ = finished((b.tolist(), a.tolist()), alpha=6, rank=rank, coefficient=1.25)

    expected = v + 1.25 * (u[:, :rank] * singular[:rank]) @ vh[:rank]
    torch.testing.assert_close(product(module, "q"), expected, rtol=1e-3, atol=1e-3)


def test_factor_a_stays():
    module, _ = finished(V, rank=1)

    assert torch.equal(module.q.lora_A["default"].weight, torch.tensor(V[1]))


def test_untrained_adapter_is_left_as_it_is():
    module, facts = finished(([[0.0], [0.0]], [[1.0, 2.0]]))

    assert not product(module, "q").any()
    assert facts == {"extrapolated_share": 0.0}


def test_settings_out_of_range_are_reported():
    assert [problem.path for problem in LoX(coefficient=-1, rank=0).problems()] == ["coefficient", "rank"]
