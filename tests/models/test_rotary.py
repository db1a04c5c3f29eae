"""Rotary embeddings in few kernels: where a family's function computes the same, and only there."""

from functools import partial

import pytest
import torch
from families import BIAS_OF_KEYS, assert_no_further, family_model, passed, same_under
from transformers import (
    BloomConfig,
    Gemma2Config,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.llama import modeling_llama

from harness.models.rotary import fused_rotary

FAMILIES = {
    LlamaConfig: 1,
    MistralConfig: 1,
    Phi3Config: 1,
    PhiConfig: 1,  # Rotates a part of each vector.
    Qwen2Config: 1,
    Qwen3Config: 1,
    Gemma2Config: 1,
    GPTNeoXConfig: 1,  # Rotates a part inside of its function, which it is left to.
    Olmo2Config: 0,  # Returns the dtype of the queries, whatever that of the angles is.
    GptOssConfig: 0,  # Has angles of half the width.
    BloomConfig: 0,  # Rotates nothing.
}
"""How many of a family's modules have a function that ours stands for."""


@pytest.mark.parametrize(("config", "modules"), FAMILIES.items(), ids=lambda value: getattr(value, "__name__", value))
def test_fused_rotation_computes_what_the_function_of_a_family_does(config, modules):
    assert same_under(fused_rotary, family_model(config), floor=BIAS_OF_KEYS) == modules


def test_function_that_rotates_a_part_of_each_vector_is_the_family_s_own():
    same_under(fused_rotary, family_model(partial(Phi3Config, partial_rotary_factor=0.5)))


@pytest.mark.parametrize("autocast", [False, True])
def test_family_that_returns_the_dtype_of_its_queries_does_so(autocast):
    model = family_model(Olmo2Config, torch.bfloat16)
    expected = passed(model, autocast)

    with fused_rotary(model):
        found = passed(model, autocast)

    assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize("autocast", [False, True])
def test_in_bfloat16_it_is_no_further_from_float32(autocast):
    model, exact = family_model(LlamaConfig, torch.bfloat16), family_model(LlamaConfig)

    assert_no_further(model, exact, fused_rotary, autocast)


def test_function_with_heads_elsewhere_is_the_family_s_own():
    draw = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 5, 4, 8, generator=draw), torch.randn(2, 5, 1, 8, generator=draw)
    angles = torch.randn(2, 5, 8, generator=draw), torch.randn(2, 5, 8, generator=draw)
    expected = modeling_llama.apply_rotary_pos_emb(query, key, *angles, unsqueeze_dim=2)

    with fused_rotary(family_model(LlamaConfig)):
        found = modeling_llama.apply_rotary_pos_emb(query, key, *angles, unsqueeze_dim=2)

    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "other",
    [
        lambda q, k, cos, sin, unsqueeze_dim=1: (q * cos.unsqueeze(1), k * cos.unsqueeze(1)),
        lambda q, k, cos, sin, position_ids=None: (q, k),
    ],
    ids=["another function", "other arguments"],
)
def test_function_that_computes_something_else_stays(other, monkeypatch):
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", other)

    with fused_rotary(family_model(LlamaConfig)) as fused:
        assert modeling_llama.apply_rotary_pos_emb is other

    assert fused == 0


def fail_within(switch):
    with switch:
        raise RuntimeError("inside")


def test_function_is_left_as_it_was():
    before = modeling_llama.apply_rotary_pos_emb

    with pytest.raises(RuntimeError, match="inside"):
        fail_within(fused_rotary(family_model(LlamaConfig)))

    assert modeling_llama.apply_rotary_pos_emb is before
