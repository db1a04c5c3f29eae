"""IRR: removal and compensation by hand, the safety vector, and the order of the layers."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.corpora.batches import Pool, RoleBatches
from harness.corpora.encode import Encoded
from harness.corpora.examples import Role
from harness.defenses.irr import IRR, recalibrated, safety_vector
from harness.errors import ModelError
from harness.mechanisms.weight_change import AdaptedLayer
from harness.models.adapter import Lora, attach
from harness.protocols import Product
from harness.training.learner import CausalLearner

ONE = torch.tensor([[1.0, 1.0]])
MIXED = torch.tensor([[2.0, 1.0], [1.0, 2.0]])


def undamped(curvature):
    """A curvature that the damping of 1 % of its mean diagonal turns into the given one."""
    return curvature - torch.eye(len(curvature)) * curvature.diagonal().mean() / 101


def test_opposing_entry_is_removed_and_the_next_one_compensates():
    # H^-1 = [[2, -1], [-1, 2]] / 3: without entry 0, -0.5, entry 1 is 0.2 + (-1 / 2) * 0.5.
    left, removed = recalibrated(torch.tensor([[-0.5, 0.2]]), ONE, undamped(MIXED), block=2)

    torch.testing.assert_close(left, torch.tensor([[0.0, -0.05]]))
    # Entry 1 did not oppose safety when the block began.
    assert removed == 1


def test_next_block_sees_the_compensation():
    left, removed = recalibrated(torch.tensor([[-0.5, 0.2]]), ONE, undamped(MIXED), block=1)

    torch.testing.assert_close(left, torch.tensor([[0.0, 0.0]]))
    assert removed == 2


def test_rows_are_independent_and_agreeing_entries_stay():
    change = torch.tensor([[-0.5, 0.2], [0.3, 0.4], [0.3, -0.4]])

    left, removed = recalibrated(change, ONE.expand(3, -1), undamped(MIXED), block=2)

    # In the last row nothing comes after the removed entry.
    torch.testing.assert_close(left, torch.tensor([[0.0, -0.05], [0.3, 0.4], [0.3, 0.0]]))
    assert removed == 2


def test_column_of_a_feature_that_is_always_zero_is_removed():
    left, _ = recalibrated(torch.tensor([[0.5, 0.2]]), ONE, torch.diag(torch.tensor([0.0, 3.0])), block=2)

    torch.testing.assert_close(left, torch.tensor([[0.0, 0.2]]))


@pytest.mark.parametrize(("held", "expected"), [(None, -6.0), (Product(torch.ones(1, 1), torch.ones(1, 1)), -5.0)])
def test_safety_vector_is_the_aligned_minus_the_unsafe_matrix(held, expected):
    a, b = torch.nn.Parameter(torch.ones(1, 1)), torch.nn.Parameter(torch.ones(1, 1))
    layer = AdaptedLayer("x", a, b, scale=2.0, held=held, alignment=None)

    found = safety_vector(layer, Product(torch.tensor([[3.0]]), torch.tensor([[1.0]])))

    # The unsafe adapter makes 2 * 3 * 1 of the base, and alignment 1 or nothing.
    assert float(found.b @ found.a) == expected


def tiny():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 20}
    model = attach(LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **sizes)), Lora(rank=2), seed=0).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    return model


def batches_of():
    rows = [Encoded(list(range(1, size + 1)), [-100, *range(2, size + 1)]) for size in (9, 12)]
    return RoleBatches({Role.SERVER: Pool(rows, 2)}, pad_id=0, seed=0)


def repaired(unsafe, *, started=0.0):
    model = tiny()
    learner = CausalLearner(model)
    start = [torch.full_like(weight, started) for weight in learner.trainables]
    facts = IRR().repair(learner, start=start, method_outputs={"unsafe": unsafe(learner)}, batches=batches_of())
    return model, facts


def logits(model):
    return model(torch.arange(1, 13)[None]).logits


def test_change_that_opposes_the_unsafe_one_everywhere_is_kept():
    # The safety vector is minus the unsafe change, which is minus the user's.
    model, facts = repaired(
        lambda learner: [
            -weight.detach() if "lora_B" in name else weight.detach()
            for name, weight in learner.module.named_parameters()
            if weight.requires_grad
        ]
    )

    assert facts["removed_share"] == 0
    torch.testing.assert_close(logits(model), logits(tiny()), atol=1e-4, rtol=1e-4)


def test_change_that_is_the_unsafe_one_is_removed():
    model, facts = repaired(lambda learner: [weight.detach().clone() for weight in learner.trainables])

    plain = tiny()
    with torch.no_grad(), plain.disable_adapter():
        expected = logits(plain)
    assert facts["removed_share"] == 1
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-4)


def test_repair_without_an_unsafe_adapter_is_refused():
    model = tiny()
    learner = CausalLearner(model)

    with pytest.raises(ModelError, match="has no unsafe adapter"):
        IRR().repair(learner, start=list(learner.trainables), method_outputs={}, batches=batches_of())


def test_settings_out_of_range_are_reported():
    method = IRR(task_rows=0, task_batch_size=0, block=0, unsafe_rows=0)

    assert [problem.path for problem in method.problems()] == ["task_rows", "task_batch_size", "block", "unsafe_rows"]
