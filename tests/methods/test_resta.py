"""RESTA by hand: ft = (1, 0), al = (2, 0) and un = (0, 0) give (1, 0) + gamma (2, 0) = (2, 0) at gamma 1/2.

Fine-tuning took U = ft - al = (-1, 0). A continued adapter holds ft, a fresh one U on a base that holds al, so that its
adapter ends at U + gamma V = (0, 0). DARE at rate 1/2 drops entries of U and doubles the others.
"""

import pytest
import torch
from adapted import AlignedLearner, adapted, copies, product, zeros
from hypothesis import given
from hypothesis import strategies as st

from harness.defenses.resta import Resta
from harness.errors import ModelError

V = ([[2.0]], [[1.0, 0.0]])


class Seeds:
    """Derives the same seed for one name every time."""

    def derive(self, *names):
        return sum(map(ord, "".join(names)))


def repaired(tuned, *, alignment=V, start=None, alpha=None, **settings):
    module = adapted({"q": tuned}, alpha=alpha)
    learner = AlignedLearner(module, {"q": alignment})
    start = zeros(learner) if start is None else copies(adapted({"q": start}, alpha=alpha))
    facts = Resta(**settings).repair(learner, start=start, method_outputs={}, batches=Seeds())
    return module, facts


def test_continued_adapter_has_the_alignment_added():
    module, facts = repaired(([[1.0]], [[1.0, 0.0]]), start=V)

    assert product(module, "q").tolist() == [[2, 0]]
    assert facts == {"alignment_norm": pytest.approx(2), "user_norm": pytest.approx(1), "gamma": 0.5}


def test_fresh_adapter_has_it_added_to_the_users_change():
    module, facts = repaired(([[-1.0]], [[1.0, 0.0]]))

    assert product(module, "q").tolist() == [[0, 0]]
    assert facts["user_norm"] == pytest.approx(1)


def test_no_vector_and_no_dropping_change_nothing():
    module, _ = repaired(([[3.0], [1.0]], [[1.0, 5.0]]), alignment=([[2.0], [1.0]], [[1.0, 0.0]]), gamma=0.0)

    assert product(module, "q").tolist() == [[3, 15], [1, 5]]


@given(seed=st.integers(0, 1000), single=st.booleans())
def test_sum_is_that_of_whole_matrices_and_its_rank_that_of_both(seed, single):
    rng = torch.Generator().manual_seed(seed)
    a, b, a0, b0 = (torch.randn(shape, generator=rng) for shape in ((2, 6), (5, 2), (2, 6), (5, 2)))
    scale, v, tuned = 3, 3 * b0 @ a0, 3 * b @ a

    module, _ = repaired(
        (b.tolist(), a.tolist()),
        alignment=((scale * b0).tolist(), a0.tolist()),
        start=(b0.tolist(), a0.tolist()) if single else None,
        alpha=6,
        gamma=0.7,
    )

    torch.testing.assert_close(product(module, "q"), tuned + 0.7 * v, rtol=1e-4, atol=1e-4)
    assert len(module.q.lora_A["default"].weight) == 4


@pytest.mark.parametrize("single", [True, False])
def test_dare_drops_entries_of_the_users_change_only_and_rescales_the_others(single):
    rng = torch.Generator().manual_seed(0)
    a, b, a0, b0 = (torch.randn(shape, generator=rng) for shape in ((2, 40), (30, 2), (2, 40), (30, 2)))
    v, tuned = b0 @ a0, b @ a
    user = tuned - v if single else tuned

    module, _ = repaired(
        (b.tolist(), a.tolist()),
        alignment=(b0.tolist(), a0.tolist()),
        start=(b0.tolist(), a0.tolist()) if single else None,
        gamma=0.5,
        drop_rate=0.75,
    )

    left = product(module, "q") - (1.5 if single else 0.5) * v
    kept = left.abs() > 1e-4
    torch.testing.assert_close(left[kept], 4 * user[kept], rtol=1e-3, atol=1e-3)
    # 1,200 entries kept with probability 1/4: four standard deviations are 60.
    assert abs(int(kept.sum()) - 300) < 60
    assert len(module.q.lora_A["default"].weight) == 30


def test_model_that_alignment_did_not_change_is_refused():
    with pytest.raises(ModelError, match="alignment changed none"):
        repaired(([[1.0]], [[1.0, 0.0]]), alignment=([[0.0]], [[1.0, 0.0]]))


def test_settings_out_of_range_are_reported():
    assert [problem.path for problem in Resta(gamma=-1, drop_rate=1.0).problems()] == ["gamma", "drop_rate"]
