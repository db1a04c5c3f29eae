from weakref import ref

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.overrides import TorchFunctionMode
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from harness.errors import ModelError
from harness.models.attention import causal_attention
from harness.training.budget import Precision
from harness.training.learner import CausalLearner

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "max_position_embeddings": 64,
}


def llama():
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def gemma():
    # A cap far below the logits' range, so that leaving it out would show.
    config = Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=0.05, attn_logit_softcapping=5.0)
    config._attn_implementation = "eager"
    return Gemma2ForCausalLM(config)


def adapted(make, **options):
    torch.manual_seed(0)
    options = {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False} | options
    return get_peft_model(make(), LoraConfig(**options))


def batch(rows=3, length=12):
    torch.manual_seed(1)
    ids = torch.randint(1, 61, (rows, length))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :7] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("make", [llama, gemma])
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
def test_gradient_is_that_of_the_plain_loss(make, targets):
    model = adapted(make, target_modules=targets)
    learner = CausalLearner(model)

    loss, gradient = learner.gradient(batch())

    plain = model(**batch()).loss
    expected = torch.autograd.grad(plain, learner.trainables)
    torch.testing.assert_close(loss, plain.detach(), rtol=1e-6, atol=0)
    for ours, theirs in zip(gradient, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6 * float(theirs.abs().max()))


def test_gradient_sends_only_supervised_positions_through_the_head():
    model = adapted(llama)
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape))

    CausalLearner(model).gradient(batch())

    supervised = int((batch()["labels"][:, 1:] != -100).sum())
    assert seen == [(supervised, 32)]


def test_gradient_writes_nothing_and_leaves_no_hook():
    model = adapted(llama)
    learner = CausalLearner(model)

    learner.gradient(batch())

    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_gradient_of_an_unused_trainable_is_zero():
    model = adapted(llama)
    unused = torch.nn.Parameter(torch.ones(3))
    model.register_parameter("unused", unused)
    learner = CausalLearner(model)

    _, gradient = learner.gradient(batch())

    place = [parameter is unused for parameter in learner.trainables].index(True)
    assert gradient[place].tolist() == [0.0, 0.0, 0.0]


def test_gradient_of_a_trainable_that_is_frozen_for_a_while_is_zero_and_the_others_do_not_notice():
    learner = CausalLearner(adapted(llama))
    _, whole = learner.gradient(batch())
    first, *others = learner.trainables

    first.requires_grad_(False)
    _, spared = learner.gradient(batch())

    assert whole[0].any()
    assert not spared[0].any()
    for expected, found in zip(whole[1:], spared[1:], strict=True):
        torch.testing.assert_close(found, expected)
    assert all(other.requires_grad for other in others)


def test_gradient_of_a_batch_without_supervised_positions_is_zero():
    learner = CausalLearner(adapted(llama))
    silent = {**batch(), "labels": torch.full((3, 12), -100)}

    loss, gradient = learner.gradient(silent)

    assert loss == 0
    assert all(not part.any() for part in gradient)


def test_gradient_in_bfloat16_is_close_and_float32():
    learner = CausalLearner(adapted(llama), precision=Precision.BFLOAT16)
    exact = CausalLearner(adapted(llama))

    loss, gradient = learner.gradient(batch())

    expected_loss, expected = exact.gradient(batch())
    assert loss.dtype == torch.float32
    assert loss != expected_loss, "the forward pass is in another format"
    assert abs(loss - expected_loss) < 0.02 * expected_loss
    assert {part.dtype for part in gradient} == {torch.float32}
    assert torch.cosine_similarity(_flat(gradient), _flat(expected), dim=0) > 0.99


def test_moved_shifts_and_restores_bit_for_bit():
    learner = CausalLearner(adapted(llama))
    _, gradient = learner.gradient(batch())
    before = [parameter.detach().clone() for parameter in learner.trainables]

    with learner.perturbed(gradient, torch.tensor(-0.1)):
        inside = [parameter.detach().clone() for parameter in learner.trainables]

    for parameter, old, moved, part in zip(learner.trainables, before, inside, gradient, strict=True):
        torch.testing.assert_close(moved, old - 0.1 * part)
        assert torch.equal(parameter, old)


def test_moved_restores_after_an_error():
    learner = CausalLearner(adapted(llama))
    before = [parameter.detach().clone() for parameter in learner.trainables]

    with pytest.raises(RuntimeError, match="inside"), learner.perturbed(before, 1.0):
        raise RuntimeError("inside")

    assert all(torch.equal(parameter, old) for parameter, old in zip(learner.trainables, before, strict=True))


def test_write_puts_a_copy_in_place_of_what_was_there():
    learner = CausalLearner(adapted(llama))
    ones = [torch.ones_like(parameter) for parameter in learner.trainables]

    for value in (2.0, 3.0):
        learner.set_gradient([value * one for one in ones])
    learner.set_gradient(ones)
    for part in ones:
        part.fill_(4.0)

    assert all(bool((parameter.grad == 1).all()) for parameter in learner.trainables)


def test_write_of_nothing_leaves_a_trainable_out_of_the_optimizers_step():
    learner = CausalLearner(adapted(llama))
    first, *rest = learner.trainables
    before = first.detach().clone()

    learner.set_gradient([None, *(torch.ones_like(parameter) for parameter in rest)])
    torch.optim.AdamW(learner.trainables, lr=0.1, weight_decay=0.5).step()

    assert first.grad is None
    assert torch.equal(first, before)


def test_norm_runs_over_all_tensors():
    learner = CausalLearner(adapted(llama))

    assert learner.norm([torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])]) == 5


def test_learner_with_bfloat16_trainables_is_refused_by_name():
    model = adapted(llama)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = parameter.data.bfloat16()

    with pytest.raises(ModelError, match=r"4 of 8 .* not float32: .*lora_B.*bfloat16.* and 1 more"):
        CausalLearner(model)


def test_learner_without_trainables_is_refused():
    model = adapted(llama).requires_grad_(False)

    with pytest.raises(ModelError, match="no trainable parameters"):
        CausalLearner(model)


def _flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def test_placed_gives_other_values_and_restores_bit_for_bit():
    learner = CausalLearner(adapted(llama))
    before = [parameter.detach().clone() for parameter in learner.trainables]
    others = [torch.full_like(parameter, 0.5) for parameter in learner.trainables]

    with learner.with_weights(others):
        inside = [parameter.detach().clone() for parameter in learner.trainables]

    assert all(torch.equal(one, other) for one, other in zip(inside, others, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(learner.trainables, before, strict=True))


@pytest.mark.parametrize("rows_at_once", [None, 2])
def test_accumulation_of_several_sums_takes_the_gradient_of_the_first(rows_at_once):
    learner = CausalLearner(adapted(llama), rows_at_once=rows_at_once)
    loss, plain = learner.gradient(batch())

    def shares(piece):
        rows = len(piece.batch["labels"]) / 3
        penalty = rows * sum((parameter**2).sum() for parameter in learner.trainables)
        return learner.loss(piece) + penalty, penalty, torch.tensor(rows)

    (value, penalty, rows), combined = learner.accumulate(learner.pieces(batch()), shares)

    assert float(rows) == pytest.approx(1)
    torch.testing.assert_close(value, loss + penalty)
    for part, alone, parameter in zip(combined, plain, learner.trainables, strict=True):
        torch.testing.assert_close(part, alone + 2 * parameter)


def test_row_weighs_by_its_supervised_tokens_however_the_batch_is_cut():
    # One harmful row with 14 supervised tokens and nine rows with two: the harmful one is 14/32 of the gradient.
    ids = torch.randint(1, 61, (10, 20), generator=torch.Generator().manual_seed(3))
    mask, labels = torch.ones_like(ids), ids.clone()
    mask[1:, 8:] = 0
    labels[:, :6] = labels[1:, 8:] = -100
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    model = adapted(llama)
    alone = [
        _flat(CausalLearner(model).gradient({name: tensor[row : row + 1] for name, tensor in batch.items()})[1])
        for row in range(10)
    ]
    expected = 14 / 32 * alone[0] + sum(2 / 32 * row for row in alone[1:])

    for rows_at_once in (None, 1, 3, 4, 10, 11):
        found = _flat(CausalLearner(model, rows_at_once=rows_at_once).gradient(batch)[1])

        assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_gradient_in_pieces_never_takes_more_rows_or_longer_ones_through_the_model():
    model = adapted(llama)
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape))
    # Of the batch's three rows of twelve tokens, the second is nine long.
    CausalLearner(model, rows_at_once=1).gradient(batch())

    assert seen == [(1, 12), (1, 12), (1, 9)]


def test_graph_of_a_micro_batch_is_gone_before_the_next_one_runs():
    """A node that lives on belongs to the stream on which it was made, and a CUDA graph cannot be captured over it."""
    learner = CausalLearner(adapted(llama), rows_at_once=1)
    before, alive = [], []

    def shares(piece):
        alive.extend(node for node in (each() for each in before) if node is not None)
        loss = learner.loss(piece)
        before.append(ref(loss))
        return (loss,)

    learner.accumulate(learner.pieces(batch(rows=4)), shares)

    assert len(before) == 4
    assert alive == []


def test_gradient_that_is_set_is_a_copy_and_none_stays_none():
    learner = CausalLearner(adapted(llama))
    gradient = [torch.randn_like(weight) for weight in learner.trainables]
    gradient[1] = None

    learner.set_gradient(gradient)

    for weight, part in zip(learner.trainables, gradient, strict=True):
        assert (weight.grad is None) == (part is None)
        if part is not None:
            assert torch.equal(weight.grad, part)
            assert weight.grad.data_ptr() != part.data_ptr()


@pytest.mark.parametrize("autocast", [False, True])
def test_causal_attention_of_grouped_heads_computes_what_a_mask_does(autocast):
    """Keys and values are repeated in float32 alone, for which PyTorch has no fast kernel with groups on a GPU."""
    model, ids = llama().eval(), batch()["input_ids"]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        with causal_attention(model), Groups() as seen:
            found = model(input_ids=ids).logits

    assert seen.heads == {(4, 2) if autocast else (4, 4)}
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-2 if autocast else 1e-6)


class Groups(TorchFunctionMode):
    """Notes how many heads of queries and of keys attention is given."""

    def __init__(self):
        super().__init__()
        self.heads = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.scaled_dot_product_attention:
            self.heads.add((args[0].shape[1], args[1].shape[1]))
        return function(*args, **(kwargs or {}))
