"""Safe Delta by hand.

Selection: d = (2, 1, 1/2) and the change (0.1, 0.2, 0.3) cost 0.01/4 = 0.0025, 0.04 and 0.36, in this order of 1 / d^2.
A budget of 0.05 takes the first two.

Compensation: d = 1 everywhere and R with 1/2 at (0, 1) and (0, 4). Taking entry 0, of 0.5, leaves the error -0.5, and
column 4 becomes 0.25; column 1 is among the four columns that are compensated together and stays.
"""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.corpora.batches import Pool, RoleBatches
from harness.corpora.encode import Encoded
from harness.corpora.examples import Role
from harness.defenses.safe_delta import SafeDelta, selected
from harness.mechanisms.input_curvature import input_products, inverse_root
from harness.models.adapter import Lora, attach
from harness.training.learner import CausalLearner


def curvature_with(root):
    """Return the matrix whose damped inverse has this upper Cholesky factor."""
    damped = torch.linalg.inv(root.double().T @ root.double())
    return damped - torch.eye(len(root)) * 0.01 * damped.diagonal().mean() / 1.01


def scale_for(budget, mean_weight, rows=1):
    """Return the setting that makes a budget."""
    return budget * 2 * 4096 / (mean_weight * rows)


def test_root_is_that_of_the_damped_inverse():
    root = torch.tensor([[2.0, 0.5], [0.0, 0.25]])

    torch.testing.assert_close(inverse_root(curvature_with(root)), root.double())


@pytest.mark.parametrize(
    ("budget", "expected"), [(0.05, [0.1, 0.2, 0]), (0.04, [0.1, 0, 0]), (0.5, [0.1, 0.2, 0.3]), (0, [0, 0, 0])]
)
def test_cheap_entries_are_taken_up_to_the_budget(budget, expected):
    curvature = curvature_with(torch.diag(torch.tensor([2.0, 1.0, 0.5])))

    found = selected(torch.tensor([[0.1, 0.2, 0.3]]), curvature, s=scale_for(budget, 1.75), block=2048)

    torch.testing.assert_close(found.change, torch.tensor([expected], dtype=torch.float32))
    assert found.taken == sum(entry > 0 for entry in expected)


def test_taken_entry_is_compensated_after_the_columns_of_its_group():
    root = torch.eye(5)
    root[0, 1] = root[0, 4] = 0.5

    found = selected(torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.2]]), curvature_with(root), s=scale_for(0.3, 1), block=2048)

    torch.testing.assert_close(found.change, torch.tensor([[0.5, 0, 0, 0, 0.25]]))
    assert found.taken == 1


def test_blocks_have_budgets_of_their_own_and_the_second_sees_the_compensation_of_the_first():
    """Budget 0.3 in each block of one column: 0.25 is taken, and then 0.75 - 0.25 = 0.5 is as cheap."""
    root = torch.tensor([[1.0, 0.5], [0.0, 1.0]])

    found = selected(torch.tensor([[0.5, 0.75]]), curvature_with(root), s=scale_for(0.3, 1), block=1)

    torch.testing.assert_close(found.change, torch.tensor([[0.5, 0.75]]))
    alone = selected(torch.tensor([[0.0, 0.75]]), curvature_with(root), s=scale_for(0.3, 1), block=1)
    torch.testing.assert_close(alone.change, torch.tensor([[0.0, 0.0]]))


def test_most_costly_directions_are_left_out_whatever_the_budget():
    """Of ten entries the last one in the order of 1 / d^2 is never taken."""
    diagonal = torch.linspace(2, 1, 10)

    found = selected(torch.ones(1, 10), curvature_with(torch.diag(diagonal)), s=1e9, block=2048)

    assert found.change.tolist() == [[1] * 9 + [0]]


def tiny():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 20}
    model = attach(LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **sizes)), Lora(rank=2), seed=0).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


def batches_of(*lengths):
    rows = [Encoded(list(range(1, size + 1)), [-100, *range(2, size + 1)]) for size in lengths]
    return RoleBatches({Role.REFUSAL: Pool(rows, len(rows))}, pad_id=0, seed=0)


def test_inputs_are_those_of_real_tokens():
    model = tiny()
    learner, modules = CausalLearner(model), [part for name, part in model.named_modules() if name.endswith("q_proj")]

    (together,), (short,), (long,) = (
        input_products(learner, modules, batches_of(*sizes).every(Role.REFUSAL)) for sizes in ((3, 7), (3,), (7,))
    )

    torch.testing.assert_close(together, short + long)
    assert float(short.diagonal().sum()) > 0


@pytest.mark.parametrize("continued", [True, False])
def test_no_budget_is_the_aligned_model(continued):
    model = tiny()
    learner = CausalLearner(model)
    start = [torch.full_like(weight, 0.1 if continued else 0) for weight in learner.trainables]

    facts = SafeDelta(s=0.0).repair(learner, start=start, method_outputs={}, batches=batches_of(5, 6))

    assert facts["taken_share"] == 0
    for name, module in model.named_modules():
        if name.endswith("q_proj"):
            product = module.lora_B["default"].weight @ module.lora_A["default"].weight
            torch.testing.assert_close(product, torch.full_like(product, 0.02 if continued else 0))


def test_settings_out_of_range_are_reported():
    method = SafeDelta(s=-1, block=0, safety_rows=0, safety_batch_size=0)

    assert [problem.path for problem in method.problems()] == ["s", "block", "safety_rows", "safety_batch_size"]
