"""Adapters on all linear layers, with rsLoRA's scale and as DoRA."""

import json

import pytest
import torch
from peft import PeftModel

from harness.generation.arithmetic import trained_arithmetic
from harness.models import adapter
from harness.models.adapter import Lora
from harness.models.merge import merge, restore

IDS = torch.tensor([[1, 9, 17, 33, 5], [1, 8, 16, 32, 4]])
SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
VARIANTS = {
    "all": Lora(rank=4, targets="all-linear"),
    "rslora": Lora(rank=4, alpha=6.0, scaling="rslora"),
    "dora": Lora(rank=4, alpha=6.0, variant="dora"),
    "everything": Lora(rank=4, targets="all-linear", scaling="rslora", variant="dora"),
    "dropout": Lora(rank=4, variant="dora", dropout=0.5),
}

each_variant = pytest.mark.parametrize("name", VARIANTS)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def randomized(model, scale=0.2):
    """Shift every trainable parameter of a model by random numbers."""
    rng = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=rng) * scale)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each_variant
def test_fresh_adapter_changes_no_output_and_detaching_leaves_the_base_bit_for_bit(name, dtype, make_model):
    model = make_model().to(dtype)
    before, expected = state(model), model(IDS).logits

    wrapped = adapter.attach(model, VARIANTS[name], seed=1)
    fresh = wrapped(IDS).logits
    trained = {parameter.dtype for parameter in wrapped.parameters() if parameter.requires_grad}
    changed = randomized(wrapped)(IDS).logits
    adapter.detach(wrapped)

    assert torch.equal(fresh, expected)
    assert trained == {torch.float32}
    assert not torch.allclose(changed, expected, atol=1e-2)
    assert same(state(model), before)


@each_variant
def test_initial_values_are_found_again_after_training(name, make_model):
    wrapped = adapter.attach(make_model(), VARIANTS[name], seed=1)
    initial = adapter.factors(wrapped)

    assert same(adapter.fresh(randomized(wrapped), seed=1), initial)
    assert not same(adapter.factors(wrapped), initial)


@pytest.mark.parametrize(("scaling", "scale"), [(None, 1.5), ("rslora", 3.0)])
@pytest.mark.parametrize("variant", [None, "dora"])
def test_projection_is_that_of_the_paper(variant, scaling, scale, make_model):
    lora = Lora(rank=4, alpha=6.0, targets=("v_proj",), scaling=scaling, variant=variant)
    wrapped = randomized(adapter.attach(make_model(), lora, seed=1))
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))

    got = wrapped.get_base_model().model.layers[1].self_attn.v_proj(x)

    stem = "base_model.model.model.layers.1.self_attn.v_proj"
    found = adapter.factors(wrapped)
    update = found[f"{stem}.lora_B.default.weight"] @ found[f"{stem}.lora_A.default.weight"]
    matrix = make_model().model.layers[1].self_attn.v_proj.weight + scale * update
    if variant:
        magnitude = found[f"{stem}.lora_magnitude_vector.default.weight"]
        matrix = torch.stack([m * row / row.square().sum().sqrt() for m, row in zip(magnitude, matrix, strict=True)])
    torch.testing.assert_close(got, x @ matrix.T, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@each_variant
def test_stored_adapter_keeps_every_bit_and_is_readable_by_peft(name, make_model, tmp_path):
    wrapped = randomized(adapter.attach(make_model(), VARIANTS[name], seed=1).eval())
    adapter.save(wrapped, tmp_path / "a")

    loaded = adapter.load(make_model(), tmp_path / "a").eval()
    lora, stored = adapter.read(tmp_path / "a")
    plain = PeftModel.from_pretrained(make_model(), tmp_path / "a")

    assert same(adapter.factors(loaded), adapter.factors(wrapped))
    assert same(stored, adapter.factors(wrapped))
    assert torch.equal(loaded(IDS).logits, wrapped(IDS).logits)
    assert torch.equal(plain(IDS).logits, wrapped(IDS).logits)
    assert (lora.scale, lora.scaling, lora.variant) == (
        VARIANTS[name].scale,
        VARIANTS[name].scaling,
        VARIANTS[name].variant,
    )
    adapter.save(loaded, tmp_path / "again")
    assert all(
        (tmp_path / "again" / path.name).read_bytes() == path.read_bytes() for path in (tmp_path / "a").iterdir()
    )


def test_plain_adapter_is_stored_as_it_always_was(save_adapter):
    folder = save_adapter("a", seed=1)

    assert json.loads((folder / adapter.SETTINGS).read_text()) == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 4.0,
        "target_modules": ["k_proj", "q_proj", "v_proj"],
        "lora_dropout": 0.0,
    }


@each_variant
def test_merged_adapter_computes_what_the_adapter_does_and_is_restored_bit_for_bit(name, make_model, tmp_path):
    wrapped = randomized(adapter.attach(make_model(initializer_range=0.1), VARIANTS[name], seed=1).eval(), scale=0.05)
    adapter.save(wrapped, tmp_path / "a")
    model = make_model(initializer_range=0.1)
    before, plain, expected = state(model), model(IDS).logits, wrapped(IDS).logits

    merged = merge(model, tmp_path / "a")
    got = model(IDS).logits
    restore(model, merged)

    assert (got - expected).norm() / expected.norm() < 1e-5
    assert (got - plain).norm() / plain.norm() > 1e-2
    assert merged.lost < 1e-4
    assert same(state(model), before)


def test_all_linear_is_every_layer_of_a_decoder_but_its_head(make_model):
    one = adapter.attach(make_model(), Lora(rank=4, targets="all-linear"), seed=1)
    other = adapter.attach(make_model(), Lora(rank=4, targets=SEVEN), seed=1)

    assert same(adapter.factors(one), adapter.factors(other))
    assert len(adapter.factors(one)) == 2 * 7 * 2


def test_targets_in_another_order_are_the_same_adapter(make_model):
    one = adapter.attach(make_model(), Lora(rank=4, targets=("q_proj", "k_proj", "o_proj")), seed=1)
    other = adapter.attach(make_model(), Lora(rank=4, targets=("o_proj", "q_proj", "k_proj")), seed=1)

    assert same(adapter.factors(one), adapter.factors(other))
    assert list(adapter.factors(one)) == list(adapter.factors(other))


def test_dora_in_bfloat16_generates_with_the_arithmetic_of_training(make_model):
    model = make_model().to(torch.bfloat16)
    wrapped = randomized(adapter.attach(model, VARIANTS["everything"], seed=1))
    before = adapter.factors(wrapped)

    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected = wrapped(IDS).logits
        with trained_arithmetic(model):
            got = model(IDS).logits

    assert torch.equal(got, expected)
    assert not torch.is_autocast_enabled("cpu")
    assert same(adapter.factors(wrapped), before)
