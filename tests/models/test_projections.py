"""Adapted layers that read one tensor are computed together: wherever they do no more than that, and only there."""

from functools import partial

import pytest
import torch
from families import BIAS_OF_KEYS, assert_no_further, assert_same_pass, family_model, passed, same_under
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    OlmoConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)

from harness.models.adapter import Lora, attach
from harness.models.projections import fused_projections
from harness.models.recompute import recomputed

LAYERS = 3
ALL = Lora(rank=2, targets="all-linear")
QKV = Lora(rank=2)
CASES = [
    pytest.param(LlamaConfig, QKV, 1, id="llama"),
    pytest.param(LlamaConfig, ALL, 4, id="llama, all layers"),  # q k v, o, gate up, down
    pytest.param(MistralConfig, QKV, 1, id="mistral"),
    pytest.param(Qwen2Config, QKV, 1, id="qwen2, with biases"),
    pytest.param(Qwen3Config, ALL, 4, id="qwen3"),
    pytest.param(Gemma2Config, QKV, 1, id="gemma2"),
    pytest.param(PhiConfig, ALL, 3, id="phi, attention beside the feed-forward block"),  # q k v fc1, dense, fc2
    pytest.param(Phi3Config, Lora(rank=2, targets=("qkv_proj", "down_proj")), 2, id="phi3, one layer for all three"),
    pytest.param(LlamaConfig, Lora(rank=2, targets=("v_proj", "o_proj"), scaling="rslora"), 2, id="alone"),
]
"""A family, its adapter, and how many groups of layers a decoder layer has."""


def build(config=LlamaConfig, lora=QKV, dtype=torch.float32):
    model = attach(family_model(config, dtype), lora, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return model


@pytest.mark.parametrize(("config", "lora", "groups"), CASES)
def test_layers_computed_together_compute_what_they_do_alone(config, lora, groups):
    assert same_under(fused_projections, build(config, lora)) == groups * LAYERS


class Products(TorchDispatchMode):
    """Counts products of matrices."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket in {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_}
        return function(*args, **(kwargs or {}))


def test_products_are_fewer():
    model, counts = build(), []
    with Products() as plain:
        passed(model)
    counts.append(plain.count)

    with fused_projections(model), Products() as fused:
        passed(model)
    counts.append(fused.count)

    # q, k and v: 9 and 15 (each a base and two factors) become 5 and 9; the first layer's input has no gradient, which
    # takes 6 and 2 of them.
    assert counts[0] - counts[1] == (24 - 14) * LAYERS - (6 - 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_they_are_no_further_from_float32(dtype):
    assert_no_further(build(lora=ALL, dtype=dtype), build(lora=ALL), fused_projections, autocast=True)


@pytest.mark.parametrize(
    "lora",
    [Lora(rank=2, variant="dora"), Lora(rank=2, dropout=0.1)],
    ids=["dora", "dropout"],
)
def test_layer_that_does_more_keeps_its_own_function(lora):
    with fused_projections(build(lora=lora)) as fused:
        assert fused == 0


def test_model_without_an_adapter_has_no_groups():
    with fused_projections(family_model(LlamaConfig)) as fused:
        assert fused == 0


def bfloat16_base():
    return build(dtype=torch.bfloat16)


def hooked():
    model = build()
    part = model.get_decoder().layers[1].self_attn.k_proj.lora_A["default"]
    part.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    return model


def hooked_on_the_way_back():
    model = build()
    part = model.get_decoder().layers[1].self_attn.v_proj.lora_B["default"]
    part.register_full_backward_hook(lambda _module, sent, _sent: tuple(2 * each for each in sent))
    return model


def merged():
    model = build()
    model.get_decoder().layers[0].self_attn.q_proj.merge()
    return model


def second_adapter():
    model = build()
    model.add_adapter("other", model.peft_config["default"])
    return model


def trained_bias():
    model = build(Qwen2Config)
    model.get_decoder().layers[1].self_attn.v_proj.base_layer.bias.requires_grad_(True)
    return model


def tied():
    model = build()
    block = model.get_decoder().layers[1].self_attn
    block.v_proj.base_layer.weight = block.k_proj.base_layer.weight
    return model


def part_of_another_tensor():
    model = build()
    base = model.get_decoder().layers[1].self_attn.v_proj.base_layer
    base.weight.data = torch.cat([base.weight.data] * 2)[: len(base.weight)]
    return model


def clipped():
    """Return a model that changes the outputs of its projections in place."""
    return build(partial(OlmoConfig, clip_qkv=0.5))


def trained_base():
    model = build()
    model.get_decoder().layers[1].self_attn.v_proj.base_layer.weight.requires_grad_(True)
    return model


@pytest.mark.parametrize(
    "make",
    [
        bfloat16_base,
        hooked,
        hooked_on_the_way_back,
        merged,
        second_adapter,
        trained_base,
        trained_bias,
        tied,
        part_of_another_tensor,
        clipped,
    ],
)
def test_layers_in_another_state_run_as_they_are(make):
    same_under(fused_projections, make(), floor=BIAS_OF_KEYS)


def test_adapter_can_be_switched_off_for_a_pass():
    model = build()
    with torch.no_grad(), model.disable_adapter():
        expected = model(input_ids=torch.arange(20)[None]).logits

    with fused_projections(model), torch.no_grad(), model.disable_adapter():
        found = model(input_ids=torch.arange(20)[None]).logits

    torch.testing.assert_close(found, expected)


def one_block(model):
    """Return an attention block, and what it may read."""
    return model.get_decoder().layers[1].self_attn, torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))


def test_what_was_computed_for_another_state_is_not_taken():
    model = build()
    block, x = one_block(model)
    with torch.no_grad():
        double, switched_off = block.k_proj(2 * x), block.k_proj.base_layer(x)

    with fused_projections(model):
        with torch.no_grad():
            block.q_proj(x)
        assert block.k_proj(x).requires_grad
        with torch.no_grad():
            block.q_proj(x)
            with model.disable_adapter():
                torch.testing.assert_close(block.k_proj(x), switched_off)
            block.q_proj(x)
            x.mul_(2)
            torch.testing.assert_close(block.k_proj(x), double)


def test_scale_and_base_may_be_replaced():
    model = build()
    block, x = one_block(model)

    with fused_projections(model), torch.no_grad():
        block.q_proj.set_scale("default", 3.0)
        scaled = block.q_proj(x)
        block.q_proj.base_layer.weight.data = 2 * block.q_proj.base_layer.weight.data
        found = block.q_proj(x)

    torch.testing.assert_close(found, block.q_proj(x))
    assert not torch.allclose(scaled, found)


def test_no_rows_have_no_outputs():
    model = build()
    block, x = one_block(model)

    with fused_projections(model):
        assert block.q_proj(x[:0]).shape == (0, 5, 32)


def test_random_state_is_left_alone():
    model = build(partial(LlamaConfig, attention_dropout=0.1)).train()
    torch.manual_seed(0)
    expected = torch.rand(3)

    torch.manual_seed(0)
    with fused_projections(model):
        found = torch.rand(3)

    assert torch.equal(found, expected)


def test_recomputed_layers_are_computed_together_twice():
    model = build()
    expected = passed(model)

    with fused_projections(model), recomputed(list(model.get_decoder().layers)):
        found = passed(model)

    assert_same_pass(found, expected)


def test_base_changed_in_place_is_seen_and_keeps_the_change():
    model, other = build(), build()
    changed = [each.get_decoder().layers[1].self_attn.k_proj.base_layer.weight for each in (model, other)]
    with torch.no_grad():
        changed[1].mul_(2)
    expected = passed(other)

    with fused_projections(model):
        with torch.no_grad():
            changed[0].mul_(2)
        found = passed(model)

    assert_same_pass(found, expected)
    assert torch.equal(changed[0], changed[1])


def test_weights_are_their_own_again_and_modules_as_they_were():
    model = build(Qwen2Config)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}

    with pytest.raises(RuntimeError, match="inside"), fused_projections(model):
        raise RuntimeError("inside")

    after = model.state_dict(keep_vars=True)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len({weight.untyped_storage().data_ptr() for weight in model.parameters()}) == len(list(model.parameters()))
    assert not any("forward" in part.__dict__ for part in model.modules())
