"""AsFT by hand, on a layer of two inputs and two outputs.

V = diag(2, 0) has C = V V^T / ||V|| = diag(2, 0), so I - C = diag(-1, 1) and the penalty of B A = [[1, 0], [1, 0]] with
B = (1, 1)^T and A = (1, 0) is 2. With D = (I - C)^T (I - C), its gradient is 2 D B A A^T = (2, 2)^T in B and
2 B^T D B A = (4, 0) in A. The orthogonal projector has D = diag(0, 1): penalty 1, (0, 2)^T and (2, 0).

The user's loss is the sum of the entries of B, with the gradient (1, 1)^T.
"""

import pytest
import torch
from adapted import AlignedLearner, adapted

from harness.defenses.asft import AsFT
from harness.errors import ModelError

V = ([[2.0], [0.0]], [[1.0, 0.0]])
TUNED = ([[1.0], [1.0]], [[1.0, 0.0]])
FRESH = ([[0.0], [0.0]], [[1.0, 0.0]])
BATCH = {"labels": torch.zeros(1, 1)}


def loss(module, _batch):
    return module.q.lora_B["default"].weight.sum()


def written(start, now, *, alignment=V, alpha=None, **settings):
    """Start a run at ``start``, take a step at ``now``; return the metrics and the gradients of B and A."""
    module = adapted({"q": start}, alpha=alpha)
    learner = AlignedLearner(module, {"q": alignment}, loss)
    step = AsFT(**settings).start(learner, None, 10)
    factors = {"B": module.q.lora_B["default"].weight, "A": module.q.lora_A["default"].weight}
    with torch.no_grad():
        for name, value in zip(("B", "A"), now, strict=True):
            factors[name].copy_(torch.tensor(value))
    metrics = step.backward(BATCH)
    return {name: float(value) for name, value in metrics.items()}, {n: f.grad.tolist() for n, f in factors.items()}


@pytest.mark.parametrize(
    ("projector", "penalty", "in_b", "in_a"),
    [("published", 2, [[2], [2]], [[4, 0]]), ("orthogonal", 1, [[0], [2]], [[2, 0]])],
)
@pytest.mark.parametrize("lamb", [1.0, 0.5])
def test_gradient_of_the_penalty_is_added_to_the_users(projector, penalty, in_b, in_a, lamb):
    metrics, gradient = written(FRESH, TUNED, projector=projector, lamb=lamb)

    assert metrics == {"loss": 2, "penalty": pytest.approx(penalty)}
    torch.testing.assert_close(torch.tensor(gradient["B"]), 1 + lamb * torch.tensor(in_b, dtype=torch.float32))
    torch.testing.assert_close(torch.tensor(gradient["A"]), lamb * torch.tensor(in_a, dtype=torch.float32))


def test_scale_of_the_adapter_is_not_part_of_the_penalty():
    assert written(FRESH, TUNED, alpha=3)[0]["penalty"] == pytest.approx(2)


def test_continued_adapter_is_not_penalized_for_the_alignment_itself():
    metrics, gradient = written(TUNED, TUNED)

    assert metrics["penalty"] == 0
    assert gradient == {"B": [[1], [1]], "A": [[0, 0]]}


def test_continued_adapter_is_penalized_for_the_users_change():
    """From B_0 = (1, 1)^T to B = (2, 3)^T with the same A: U = (1, 2)^T (1, 0), ||(I - C) U||^2 = 1 + 4."""
    metrics, gradient = written(TUNED, ([[2.0], [3.0]], [[1.0, 0.0]]))

    assert metrics["penalty"] == pytest.approx(5)
    # 2 D U A^T = 2 (1, 2)^T, and 2 B^T D U = 2 (2 * 1 + 3 * 2) (1, 0).
    assert gradient["B"] == [[pytest.approx(1 + 2)], [pytest.approx(1 + 4)]]
    assert gradient["A"] == [[pytest.approx(16), 0]]


def test_model_that_alignment_did_not_change_is_refused():
    with pytest.raises(ModelError, match="alignment changed none"):
        written(FRESH, TUNED, alignment=([[0.0], [0.0]], [[1.0, 0.0]]))


def test_settings_out_of_range_are_reported():
    assert [problem.path for problem in AsFT(lamb=-1).problems()] == ["lamb"]
