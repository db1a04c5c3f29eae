"""WiSE-FT by hand, on one layer of two inputs and two outputs.

With a fresh adapter the aligned model is the base, and U = (2, 4)^T (1, 3) is multiplied by 1 - alpha. With one that
continues W_al = diag(1, 0) to W_ft = diag(0, 3), the mean at alpha 1/4 is diag(1/4, 9/4): of rank 2, and exact.
"""

import pytest
import torch
from adapted import AlignedLearner, adapted, copies, product, zeros

from harness.defenses.wise_ft import WiseFT

U = ([[2.0], [4.0]], [[1.0, 3.0]])
FIRST, SECOND = ([[1.0], [0.0]], [[1.0, 0.0]]), ([[0.0], [3.0]], [[0.0, 1.0]])


def repaired(tuned, alpha, *, start=None, scale=1):
    module = adapted({"q": tuned}, alpha=scale)
    learner = AlignedLearner(module, {})
    start = zeros(learner) if start is None else copies(adapted({"q": start}, alpha=scale))
    facts = WiseFT(alpha=alpha).repair(learner, start=start, method_outputs={}, batches=None)
    assert facts == {"alpha": alpha}
    return module


@pytest.mark.parametrize(("alpha", "factor"), [(0.25, 0.75), (0.0, 1), (1.0, 0)])
def test_fresh_adapter_is_scaled_and_keeps_its_rank(alpha, factor):
    module = repaired(U, alpha)

    assert product(module, "q").tolist() == [[2 * factor, 6 * factor], [4 * factor, 12 * factor]]
    assert len(module.q.lora_A["default"].weight) == 1


@pytest.mark.parametrize("scale", [1, 4])
def test_continued_adapter_holds_the_mean_exactly_with_twice_the_rank(scale):
    module = repaired(SECOND, 0.25, start=FIRST, scale=scale)

    assert product(module, "q").tolist() == [[0.25 * scale, 0], [0, 2.25 * scale]]
    assert len(module.q.lora_A["default"].weight) == 2
    with torch.no_grad():
        added = module.q(torch.eye(2)) - module.q.get_base_layer()(torch.eye(2))
    torch.testing.assert_close(added.T, product(module, "q"))


def test_settings_out_of_range_are_reported():
    assert [problem.path for problem in WiseFT(alpha=1.5).problems()] == ["alpha"]
