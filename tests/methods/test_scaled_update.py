"""Scaled update by hand, on one layer of two inputs and two outputs with an adapter of rank 1.

Double: B_0 = 0, so the product (2, 4)(1, 3)^T becomes (1, 2)(1, 3)^T at factor 1/2.

Single: W_0 = diag(1, 0), W = diag(0, 3). Half way lies diag(1/2, 3/2), of rank 2; the nearest matrix of rank 1 is
diag(0, 3/2), and 1/2 is lost of a scaled change diag(-1/2, 3/2) with the norm sqrt(10) / 2: a share of 1 / sqrt(10). If
W = diag(3, 0), half way lies diag(2, 0), of rank 1: nothing is lost.
"""

import pytest
import torch
from torch import nn
from user_learner import UserLearner

from harness.defenses.scaled_update import ScaledUpdate
from harness.errors import ModelError


class Adapted(nn.Module):
    """A layer's adapter, named as peft does."""

    def __init__(self, a, b):
        super().__init__()
        factors = {"lora_A": torch.tensor(a), "lora_B": torch.tensor(b)}
        self.q_proj = nn.ModuleDict(
            {name: nn.ModuleDict({"default": nn.Linear(*value.T.shape, bias=False)}) for name, value in factors.items()}
        )
        for name, value in factors.items():
            self.q_proj[name]["default"].weight = nn.Parameter(value)

    @property
    def product(self):
        a, b = (self.q_proj[name]["default"].weight.detach() for name in ("lora_A", "lora_B"))
        return (b @ a).tolist()


def repaired(start, a, b, factor):
    model = Adapted(a, b)
    start = [torch.tensor(part) for part in start]
    facts = ScaledUpdate(factor=factor).repair(UserLearner(model), start=start, method_outputs={}, batches=None)
    assert facts["factor"] == factor
    return model, facts["lost"]


@pytest.mark.parametrize(
    ("factor", "product"), [(0.5, [[1, 3], [2, 6]]), (0.0, [[0, 0], [0, 0]]), (1.0, [[2, 6], [4, 12]])]
)
def test_new_adapter_has_the_scaled_product_exactly(factor, product):
    model, lost = repaired([[[7.0, 7.0]], [[0.0], [0.0]]], [[1.0, 3.0]], [[2.0], [4.0]], factor)

    assert model.product == product
    assert lost == 0


@pytest.mark.parametrize(
    ("a", "b", "factor", "product", "lost"),
    [
        ([[0.0, 1.0]], [[0.0], [3.0]], 0.5, [[0, 0], [0, 1.5]], 0.1**0.5),
        ([[3.0, 0.0]], [[1.0], [0.0]], 0.5, [[2, 0], [0, 0]], 0),
        ([[0.0, 1.0]], [[0.0], [3.0]], 0.0, [[1, 0], [0, 0]], 0),
        ([[0.0, 1.0]], [[0.0], [3.0]], 1.0, [[0, 0], [0, 3]], 0),
    ],
)
def test_continued_adapter_has_the_nearest_product_of_its_rank(a, b, factor, product, lost):
    model, found = repaired([[[1.0, 0.0]], [[1.0], [0.0]]], a, b, factor)

    torch.testing.assert_close(torch.tensor(model.product), torch.tensor(product, dtype=torch.float32))
    assert found == pytest.approx(lost, abs=1e-6)


def test_rank_above_the_size_of_a_layer_is_no_error():
    ones = torch.ones(3, 1).tolist()

    model, lost = repaired([ones, [[2.0, 0.0, 0.0]]], ones, [[0.0, 0.0, 6.0]], 0.5)

    torch.testing.assert_close(torch.tensor(model.product), torch.tensor([[4.0]]))
    assert lost == pytest.approx(0, abs=1e-6)


def test_weights_that_are_trained_without_an_adapter_are_interpolated_themselves():
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[4.0, 8.0]]))
        model.bias.copy_(torch.tensor([-2.0]))
    start = [torch.tensor([[0.0, 4.0]]), torch.tensor([2.0])]

    facts = ScaledUpdate(factor=0.25).repair(UserLearner(model), start=start, method_outputs={}, batches=None)

    assert model.weight.tolist() == [[1.0, 5.0]]
    assert model.bias.tolist() == [1.0]
    assert facts == {"factor": 0.25, "lost": 0.0}


def test_adapter_that_is_not_trained_alone_is_refused():
    model = Adapted([[1.0, 0.0]], [[1.0], [0.0]])
    model.other = nn.Linear(2, 2)
    learner = UserLearner(model)

    with pytest.raises(ModelError, match="not plain LoRA"):
        ScaledUpdate().repair(learner, start=list(learner.trainables), method_outputs={}, batches=None)


def test_settings_out_of_range_are_reported():
    assert [problem.path for problem in ScaledUpdate(factor=1.5).problems()] == ["factor"]
