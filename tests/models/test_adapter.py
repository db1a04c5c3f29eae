import json

import pytest
import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

from harness.errors import ModelError
from harness.models import adapter
from harness.models.adapter import Lora
from harness.models.merge import merge, restore

IDS = torch.tensor([[1, 9, 17, 33, 5], [1, 8, 16, 32, 4]])


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_fresh_adapter_changes_no_output_and_detaching_leaves_the_base_bit_for_bit(make_model):
    model = make_model()
    before, expected = state(model), model(IDS).logits

    wrapped = adapter.attach(model, Lora(rank=4), seed=1)
    fresh = wrapped(IDS).logits
    for factor in wrapped.parameters():
        if factor.requires_grad:
            factor.data.add_(0.5)
    changed = wrapped(IDS).logits
    adapter.detach(wrapped)

    assert torch.equal(fresh, expected)
    assert not torch.allclose(changed, expected)
    assert same(state(model), before)
    assert not [name for name, value in model.named_parameters() if value.requires_grad]
    assert not hasattr(model, "peft_config")


def test_fresh_adapter_depends_on_the_seed_and_leaves_the_global_random_state(make_model):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    first = adapter.factors(adapter.attach(make_model(), Lora(rank=4), seed=2**62 + 1))
    drawn = torch.rand(3)
    again = adapter.factors(adapter.attach(make_model(seed=3), Lora(rank=4), seed=2**62 + 1))
    other = adapter.factors(adapter.attach(make_model(), Lora(rank=4), seed=2**62 + 2))

    assert torch.equal(drawn, expected)
    assert same(first, again)
    assert not same(first, other)
    for name, value in first.items():
        if ".lora_B." in name:
            assert not value.any()
        else:
            assert 0 < value.abs().max() <= value.shape[1] ** -0.5


def test_adapter_trains_only_its_own_float32_factors_on_a_bfloat16_base(make_model):
    model = make_model().to(torch.bfloat16)

    wrapped = adapter.attach(model, Lora(rank=4), seed=1)
    wrapped(IDS, labels=IDS).loss.backward()

    trained = {name: value for name, value in wrapped.named_parameters() if value.requires_grad}
    assert trained.keys() == adapter.factors(wrapped).keys()
    assert {value.dtype for value in trained.values()} == {torch.float32}
    assert any(value.grad.any() for name, value in trained.items() if ".lora_B." in name)
    assert wrapped(IDS).logits.dtype == torch.bfloat16


def test_reference_adapter_on_llama_2_7b_has_25165824_factors():
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig()).requires_grad_(False)

    wrapped = adapter.attach(model, Lora(), seed=0)

    assert sum(value.numel() for value in wrapped.parameters() if value.requires_grad) == 25_165_824


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapter_round_trip_keeps_every_bit_and_is_readable_by_peft(make_model, save_adapter):
    folder = save_adapter("a", seed=1)

    loaded = adapter.load(make_model(), folder)
    lora, stored = adapter.read(folder)
    plain = PeftModel.from_pretrained(make_model(), folder)

    assert same(adapter.factors(loaded), stored)
    assert (lora.rank, lora.alpha, set(lora.targets), lora.dropout) == (4, 4.0, {"q_proj", "k_proj", "v_proj"}, 0.0)
    assert torch.equal(loaded(IDS).logits, plain(IDS).logits)
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".safetensors"]
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_loaded_adapter_adds_scaled_product_to_the_projection(make_model, save_adapter):
    lora = Lora(rank=4, alpha=6.0, targets=("v_proj",))
    folder = save_adapter("a", seed=1, lora=lora)
    _, stored = adapter.read(folder)
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))

    loaded = adapter.load(make_model(), folder).get_base_model()
    got = loaded.model.layers[1].self_attn.v_proj(x)

    stem = "base_model.model.model.layers.1.self_attn.v_proj"
    first, second = stored[f"{stem}.lora_A.default.weight"], stored[f"{stem}.lora_B.default.weight"]
    weight = make_model().model.layers[1].self_attn.v_proj.weight
    torch.testing.assert_close(got, x @ weight.T + 1.5 * (x @ first.T @ second.T), rtol=1e-6, atol=1e-6)


def test_merged_adapter_computes_what_the_adapter_does_and_is_restored_bit_for_bit(make_model, save_adapter):
    folder = save_adapter("a", seed=1)
    model = make_model(initializer_range=0.1)
    before, plain = state(model), model(IDS).logits
    expected = adapter.load(make_model(initializer_range=0.1), folder)(IDS).logits

    merged = merge(model, folder)
    got = model(IDS).logits
    restore(model, merged)

    assert (got - expected).norm() / expected.norm() < 1e-6
    assert (got - plain).norm() / plain.norm() > 1e-2
    assert merged.lost < 1e-5
    assert len(merged.originals) == 6
    assert same(state(model), before)


def test_merge_into_bfloat16_reports_what_rounding_swallowed(make_model, save_adapter):
    folder = save_adapter("a", seed=1)
    stored = adapter.load(make_model(), folder)
    for name, factor in stored.named_parameters():
        if ".lora_B." in name:
            factor.data.mul_(0.01)
    adapter.save(stored, folder)
    model = make_model().to(torch.bfloat16)
    before = state(model)

    merged = merge(model, folder)
    changed = {name: model.get_parameter(name).float() - before[name].float() for name in merged.originals}
    restore(model, merged)

    lora, factors = adapter.read(folder)
    error, added = 0.0, 0.0
    for name, got in changed.items():
        stem = "base_model.model." + name.removesuffix("weight")
        wanted = factors[f"{stem}lora_B.default.weight"] @ factors[f"{stem}lora_A.default.weight"]
        error += (got - wanted).square().sum().item()
        added += wanted.square().sum().item()
    assert lora.alpha == lora.rank
    assert merged.lost == pytest.approx((error / added) ** 0.5, rel=1e-4)
    assert merged.lost > 0.05
    assert same(state(model), before)


def test_two_adapters_merge_and_attach_as_the_manual_sum(make_model, save_adapter):
    first, second = save_adapter("a", seed=1), save_adapter("b", seed=2)
    manual = make_model(initializer_range=0.1)
    with torch.no_grad():
        for folder in (first, second):
            _, stored = adapter.read(folder)
            for name, factor in stored.items():
                if ".lora_A." in name:
                    place = name.removeprefix("base_model.model.").split(".lora_A.")[0] + ".weight"
                    manual.get_parameter(place).add_(stored[name.replace("lora_A", "lora_B")] @ factor)
    model = make_model(initializer_range=0.1)

    merge(model, first)
    got = adapter.load(model, second)(IDS).logits

    expected = manual(IDS).logits
    assert (got - expected).norm() / expected.norm() < 1e-6


def test_target_that_the_model_lacks_is_refused_with_the_names_it_has(make_model):
    model = make_model()

    with pytest.raises(ModelError, match=r"`qkv_proj`.*`k_proj`.*adapter\.targets"):
        adapter.attach(model, Lora(rank=4, targets=("q_proj", "qkv_proj")), seed=0)

    assert not hasattr(model, "peft_config")


def test_adapter_of_another_shape_is_refused_and_leaves_the_model_whole(make_model, save_adapter):
    folder = save_adapter("wide", seed=1, hidden_size=64)
    model = make_model()
    before = state(model)

    with pytest.raises(ModelError, match="does not fit the model"):
        adapter.load(model, folder)
    with pytest.raises(ModelError, match="does not fit the model"):
        merge(model, folder)

    assert same(state(model), before)


@pytest.mark.parametrize("damage", ["absent", "settings", "weights"])
def test_folder_without_a_readable_adapter_is_a_model_error(damage, tmp_path, save_adapter):
    folder = tmp_path / "none" if damage == "absent" else save_adapter("a", seed=1)
    if damage == "settings":
        (folder / adapter.SETTINGS).write_text(json.dumps({"r": 4}))
    if damage == "weights":
        (folder / adapter.WEIGHTS).write_bytes((folder / adapter.WEIGHTS).read_bytes()[:100])

    with pytest.raises(ModelError, match="contains no readable adapter"):
        adapter.read(folder)


def test_lora_settings_out_of_range_are_all_reported():
    found = Lora(rank=0, alpha=0.0, targets=(), dropout=1.0).problems()

    assert [problem.path for problem in found] == ["rank", "alpha", "targets", "dropout"]
    assert not Lora().problems()
