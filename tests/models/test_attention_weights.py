"""Attention weights of a real model, and what is left of the switch to the implementation that gives them."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.models.attention import causal_attention
from harness.models.attention_weights import kept_attention


def build():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 4, "vocab_size": 20}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, num_key_value_heads=2, **sizes)).eval()


IDS = torch.tensor([[1, 2, 3, 4, 5]])


def test_weights_are_those_of_every_head_and_causal():
    model = build()

    with kept_attention(model) as kept:
        hooked = model(input_ids=IDS).logits

    assert {layer: weights.shape for layer, weights in kept.items()} == {0: (1, 4, 5, 5), 1: (1, 4, 5, 5)}
    for weights in kept.values():
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(1, 4, 5))
        assert not weights.triu(1).any()
    torch.testing.assert_close(hooked, model(input_ids=IDS).logits)


def test_implementation_in_use_is_back_afterwards():
    model = build()
    assert model.config._attn_implementation == "sdpa"

    with causal_attention(model):
        with kept_attention(model) as kept:
            model(input_ids=IDS)
        inside = model.config._attn_implementation

    assert len(kept) == 2
    assert inside == "harness_causal"
    assert model.config._attn_implementation == "sdpa"
    assert not any(part._forward_hooks for part in model.modules())
