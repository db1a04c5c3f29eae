"""SafetyLock: direction, accuracy and shift by hand, and the shift in a model."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.corpora.encode import Encoding
from harness.corpora.examples import Example
from harness.corpora.template import Template
from harness.errors import ModelError
from harness.generation.answers import Path
from harness.generation.decoding import Decoding
from harness.generation.transformers import answer
from harness.models.adapter import Lora, attach
from harness.models.decoder import output_projections
from harness.models.tiny import build_tokenizer
from harness.protocols import Calibrated, ServedModel
from harness.serving.safetylock import (
    HeadDirections,
    SafetyLock,
    accuracies,
    directions,
    head_outputs,
    logistic_regression,
    shift,
)

PLAIN = Encoding(template=Template.PLAIN, newline=False, max_length=64)


def heads(*rows):
    """Outputs of one head in one layer, ``[1, tokens, 1, size]``."""
    return torch.tensor(rows)[None, :, None]


def made(*, adapted=False):
    tokenizer = build_tokenizer()
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(shape).eval().requires_grad_(False)
    if adapted:
        model = attach(model, Lora(rank=2, targets=("q_proj", "o_proj")), seed=0).eval()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.2)
    return ServedModel(model, tokenizer, PLAIN)


def found(accuracy):
    """Directions of a model of two layers with four heads of size four: along the first axis, deviation one half."""
    direction = torch.zeros(2, 4, 4)
    direction[..., 0] = 1
    tensors = {"direction": direction, "deviation": torch.full((2, 4), 0.5), "accuracy": torch.tensor(accuracy)}
    return Calibrated(tensors, {})


def test_direction_is_the_unit_difference_of_the_means_and_the_deviation_that_along_it():
    # Means (1, 0) and (-1, 0); the projections on (1, 0) are 1, 1, -1, -1.
    unit, deviation = directions(heads([1.0, 3.0], [1.0, -3.0]), heads([-1.0, 2.0], [-1.0, -2.0]))

    assert unit.tolist() == [[[1, 0]]]
    assert deviation.tolist() == [[1]]


def test_head_that_is_always_the_same_has_no_direction():
    unit, deviation = directions(heads([2.0, 2.0]), heads([2.0, 2.0]))

    assert unit.tolist() == [[[0, 0]]]
    assert deviation.tolist() == [[0]]


def test_shift_is_the_strength_in_deviations_in_the_most_accurate_heads():
    tensors = {
        "direction": torch.tensor([[[1.0, 0.0], [0.6, 0.8]]]),
        "deviation": torch.tensor([[1.0, 2.0]]),
        "accuracy": torch.tensor([[0.9, 0.8]]),
    }

    assert shift(tensors, heads=1, strength=6.0).tolist() == [[[6, 0], [0, 0]]]
    assert shift(tensors, heads=2, strength=-1.0)[0].tolist() == [[-1, 0], [pytest.approx(-1.2), pytest.approx(-1.6)]]


def test_later_one_of_two_heads_of_equal_accuracy_is_taken():
    chosen = shift(found([[0.5, 0.9, 0.9, 0.7], [0.9, 0.1, 0.2, 0.3]]).tensors, heads=2, strength=2.0)

    assert [tuple(each) for each in chosen[..., 0].nonzero().tolist()] == [(0, 2), (1, 0)]


def test_head_that_separates_the_answers_is_right_and_one_that_does_not_is_right_by_chance():
    torch.manual_seed(0)
    safe, unsafe = torch.randn(1, 40, 2, 3), torch.randn(1, 40, 2, 3)
    safe[:, :, 0, 0] += 9

    accuracy = accuracies(safe, unsafe, held_out=0.4, seed=0)

    assert accuracy.shape == (1, 2)
    assert accuracy[0, 0] == 1
    assert 0.3 < accuracy[0, 1] < 0.8


def test_regression_has_the_penalty_of_the_published_one():
    # Two points at +-1: w minimizes w^2 / 2 + 2 log(1 + e^-w), so w = 2 / (1 + e^w); the bias is zero.
    weight, bias = logistic_regression(torch.tensor([[1.0], [-1.0]]).numpy(), torch.tensor([1.0, -1.0]).numpy())

    assert weight == pytest.approx(2 / (1 + 2.718281828**weight), abs=1e-4)
    assert bias == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("adapted", [False, True])
def test_shift_is_a_bias_behind_the_output_projection(adapted):
    served = made(adapted=adapted)
    method = SafetyLock(heads=3, strength=4.0)
    known = found([[0.5, 0.9, 0.9, 0.7], [0.9, 0.1, 0.2, 0.3]])
    ids = torch.tensor([served.tokenizer("press the quill")["input_ids"]])
    before = served.model(ids).logits

    with method.steering(served, known):
        steered = served.model(ids).logits

    moved = shift(known.tensors, heads=3, strength=4.0).flatten(1)
    projections = output_projections(served.model)
    biases = [added @ projection(torch.eye(16)) for projection, added in zip(projections, moved, strict=True)]
    handles = [
        projection.register_forward_hook(lambda _module, _inputs, output, bias=bias: output + bias)
        for projection, bias in zip(projections, biases, strict=True)
    ]
    by_bias = served.model(ids).logits
    for handle in handles:
        handle.remove()

    assert torch.allclose(steered, by_bias, atol=1e-4)
    assert not torch.allclose(steered, before, atol=1e-2)
    assert torch.equal(served.model(ids).logits, before)


@pytest.mark.slow
def test_both_decoding_paths_are_steered_alike():
    served = made(adapted=True)
    known = found([[0.5, 0.9, 0.9, 0.7], [0.9, 0.1, 0.2, 0.3]])
    asked = ["press the quill", "fold it", "grind the old hat for the lamp"]

    def answered(path):
        return answer(
            served.model, served.tokenizer, asked, new_tokens=5, decoding=Decoding(), batch_size=2, path=path
        ).texts

    plain = answered(Path.PLAIN)
    with SafetyLock(heads=3, strength=4.0).steering(served, known):
        steered = {path: answered(path) for path in (Path.PLAIN, Path.SLOTS)}

    assert steered[Path.PLAIN] == steered[Path.SLOTS] != plain
    assert answered(Path.SLOTS) == plain


def test_heads_are_read_in_front_of_the_output_projection_at_the_end_of_an_answer():
    served = made()
    read = []
    handle = output_projections(served.model)[1].register_forward_pre_hook(
        lambda _module, inputs: read.append(inputs[0])
    )
    text = served.tokenizer("press the quill : sorry it the", return_tensors="pt")["input_ids"]
    served.model(text)
    handle.remove()

    states = head_outputs(served, Example("press the quill", "sorry it the"), 2)

    assert [each.shape for each in states] == [(2, 4, 4)] * 2
    assert torch.equal(torch.stack([each[1].flatten() for each in states]), read[0][0, -2:])


def test_more_heads_than_the_model_has_are_refused():
    with pytest.raises(ModelError, match=r"`serve\.heads`: 9 heads requested, but the model has 8"):
        SafetyLock(heads=9).steering(made(), found([[0.5] * 4] * 2))


def test_settings_out_of_range_are_named():
    assert [each.path for each in HeadDirections(held_out=1.0, pairs=0).problems()] == ["pairs", "held_out"]
