"""RMS norms in one kernel: where PyTorch's computes what the module does, and only there."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from harness.models.norms import fused_norms

SIZE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
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


def model_of(config, dtype=torch.float32):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**SIZE)).to(dtype)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(0.3 * torch.randn(weight.shape).to(dtype))
    return model


def passed(model, autocast=False):
    """Return the logits of a pass, and the gradients of all parameters."""
    model.zero_grad()
    ids = torch.arange(40).view(2, 20)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = model(input_ids=ids).logits
    logits.float().logsumexp(-1).mean().backward()
    return logits.detach(), [weight.grad.clone() for weight in model.parameters()]


@pytest.mark.parametrize(("config", "norms"), FAMILIES.items(), ids=lambda value: getattr(value, "__name__", value))
def test_fused_norms_compute_what_the_modules_of_a_family_do(config, norms):
    model = model_of(config)
    logits, gradients = passed(model)

    with fused_norms(model) as fused:
        found, found_gradients = passed(model)

    assert fused == norms
    torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(found_gradients, gradients, strict=True):
        assert float((ours - theirs).norm()) <= 1e-5 * float(theirs.norm())


def relative_error(found, truth):
    apart = sum(float((ours.float() - theirs).square().sum()) for ours, theirs in zip(found, truth, strict=True))
    return (apart / sum(float(theirs.square().sum()) for theirs in truth)) ** 0.5


@pytest.mark.parametrize("autocast", [False, True])
def test_in_bfloat16_fused_norms_keep_the_dtype_and_are_no_further_from_float32(autocast):
    model, exact = model_of(LlamaConfig, torch.bfloat16), model_of(LlamaConfig)
    exact.load_state_dict({name: weight.float() for name, weight in model.state_dict().items()})
    _, truth = passed(exact)
    logits, plain = passed(model, autocast)

    with fused_norms(model) as fused:
        found, ours = passed(model, autocast)

    assert fused == 7
    assert found.dtype == logits.dtype
    assert relative_error(ours, truth) <= 1.1 * relative_error(plain, truth)


def test_norm_of_another_dtype_than_its_input_runs_as_it_is():
    model = model_of(LlamaConfig)
    norm, hidden = model.model.norm, torch.randn(2, 32).bfloat16()
    expected = norm(hidden)

    with fused_norms(model):
        found = norm(hidden)

    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_modules_are_left_as_they_were():
    model = model_of(LlamaConfig)

    with pytest.raises(RuntimeError, match="inside"), fused_norms(model):
        raise RuntimeError("inside")

    assert not any("forward" in part.__dict__ for part in model.modules())
