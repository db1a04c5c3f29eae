"""RMS norms in one kernel: where PyTorch's computes what the module does, and only there."""

import pytest
import torch
from families import assert_no_further, family_model, same_under
from transformers import Gemma2Config, LlamaConfig, MistralConfig, Olmo2Config, Phi3Config, Qwen2Config, Qwen3Config

from harness.models.norms import fused_norms

FAMILIES = {
    LlamaConfig: 2 * 3 + 1,
    MistralConfig: 2 * 3 + 1,
    Phi3Config: 2 * 3 + 1,
    Qwen2Config: 2 * 3 + 1,
    Qwen3Config: 4 * 3 + 1,
    Olmo2Config: 4 * 3 + 1,
    Gemma2Config: 0,
}
"""Norms of a model that PyTorch's kernel computes: two in a layer and one behind the last; those of queries and keys
too. Gemma adds one to its weights."""


@pytest.mark.parametrize(("config", "norms"), FAMILIES.items(), ids=lambda value: getattr(value, "__name__", value))
def test_fused_norms_compute_what_the_modules_of_a_family_do(config, norms):
    assert same_under(fused_norms, family_model(config)) == norms


@pytest.mark.parametrize("autocast", [False, True])
def test_in_bfloat16_fused_norms_keep_the_dtype_and_are_no_further_from_float32(autocast):
    model, exact = family_model(LlamaConfig, torch.bfloat16), family_model(LlamaConfig)

    assert_no_further(model, exact, fused_norms, autocast)


def test_norm_of_another_dtype_than_its_input_runs_as_it_is():
    model = family_model(LlamaConfig)
    norm, hidden = model.model.norm, torch.randn(2, 32).bfloat16()
    expected = norm(hidden)

    with fused_norms(model):
        found = norm(hidden)

    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_modules_are_left_as_they_were():
    model = family_model(LlamaConfig)

    with pytest.raises(RuntimeError, match="inside"), fused_norms(model):
        raise RuntimeError("inside")

    assert not any("forward" in part.__dict__ for part in model.modules())
