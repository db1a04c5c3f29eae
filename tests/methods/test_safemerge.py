"""SafeMERGE by hand, on layers of two inputs and two outputs.

V = diag(2, 0). The change (0, 1)^T (1, 0) has Safe LoRA's cosine 0, (1, 0)^T (0, 3) has 1. With weights 0.64 and 0.36,
whose roots are 0.8 and 0.6, the factors of (0, 1)^T (1, 0) and of the safe adapter (1, 0)^T (0, 1) become
B = (0.6, 0.8)^T and A = (0.8, 0.6), with the product [[0.48, 0.36], [0.64, 0.48]]: 0.64 and 0.36 where the two adapters
are, and the cross terms 0.48. The products average to [[0, 0.36], [0.64, 0]].
"""

import pytest
import torch
from adapted import AlignedLearner, adapted, copies, product, zeros

from harness.defenses.safemerge import SafeMerge
from harness.errors import ModelError

V = ([[2.0], [0.0]], [[1.0, 0.0]])
ACROSS, ALONG, SAFE = ([[0.0], [1.0]], [[1.0, 0.0]]), ([[1.0], [0.0]], [[0.0, 3.0]]), ([[1.0], [0.0]], [[0.0, 1.0]])


def repaired(layers, *, start=None, alpha=None, alignment=None, safe=SAFE, **settings):
    module = adapted(layers, alpha=alpha)
    learner = AlignedLearner(module, alignment or dict.fromkeys(layers, V))
    start = zeros(learner) if start is None else copies(adapted(start, alpha=alpha))
    outputs = {} if safe is None else {"safe": copies(adapted(dict.fromkeys(layers, safe), alpha=alpha))}
    method = SafeMerge(safe_weight=0.36, **settings)
    return module, method.repair(learner, start=start, method_outputs=outputs, batches=None)


def close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize(
    ("merge", "expected", "rank"),
    [("factors", [[0.48, 0.36], [0.64, 0.48]], 1), ("products", [[0, 0.36], [0.64, 0]], 2)],
)
@pytest.mark.parametrize("scale", [1, 3])
def test_layer_of_low_cosine_is_merged_and_the_others_are_kept(merge, expected, rank, scale):
    module, facts = repaired({"q": ACROSS, "k": ALONG}, merge=merge, alpha=scale)

    close(product(module, "q"), [[scale * entry for entry in row] for row in expected])
    close(product(module, "k"), [[0, 3 * scale], [0, 0]])
    assert facts["cosines"] == {"q": 0.0, "k": 1.0}
    assert facts["merged"] == {"q": True, "k": False}
    assert len(module.q.lora_A["default"].weight) == len(module.k.lora_A["default"].weight) == rank


def test_cosine_equal_to_the_threshold_is_kept():
    module, facts = repaired({"q": ACROSS}, threshold=0.0)

    assert facts["merged"] == {"q": False}
    close(product(module, "q"), [[0, 0], [1, 0]])


def test_products_keep_an_alignment_that_both_adapters_contain():
    """Tuned V + (0, 1)^T (1, 0) = (2, 1)^T (1, 0) and safe V: 0.64 (2, 1)^T (1, 0) + 0.36 V = (2, 0.64)^T (1, 0)."""
    module, facts = repaired({"q": ([[2.0], [1.0]], [[1.0, 0.0]])}, start={"q": V}, safe=V, merge="products")

    assert facts["cosines"] == {"q": 0.0}
    close(product(module, "q"), [[2, 0], [0.64, 0]])


def test_repair_without_a_safe_adapter_is_refused():
    with pytest.raises(ModelError, match="no safe adapter"):
        repaired({"q": ACROSS}, safe=None)


def test_settings_out_of_range_are_reported():
    method = SafeMerge(safe_weight=1.5, safe_rows=0, threshold=-2)

    assert [problem.path for problem in method.problems()] == ["safe_weight", "safe_rows", "threshold"]
