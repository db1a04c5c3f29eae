import logging

import pytest
import torch

from harness.errors import ModelError
from harness.models import adapter
from harness.models.adapter import Lora
from harness.models.loading import ModelRef, loaded_model

IDS = torch.tensor([[1, 9, 17, 33, 5]])


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_base_is_kept_between_leases_and_freed_for_another(save_base):
    memory = {}
    first = ModelRef(base_key="first", base=save_base("first"))
    second = ModelRef(base_key="second", base=save_base("second", seed=1))

    with loaded_model(first, memory) as lent:
        one = lent.model
    with loaded_model(first, memory) as lent:
        again = lent.model
    with loaded_model(second, memory) as lent:
        other = lent.model

    assert again is one
    assert other is not one
    assert len(memory) == 1


def test_lease_merges_and_attaches_and_returns_the_base_bit_for_bit(save_base, save_adapter, make_model):
    memory, base = {}, save_base()
    first, second = save_adapter("a", seed=1), save_adapter("b", seed=2)
    plain = ModelRef(base_key="k", base=base)
    with loaded_model(plain, memory) as lent:
        before, expected = state(lent.model), lent.model(IDS).logits

    with loaded_model(ModelRef(base_key="k", base=base, merged=(first, second)), memory) as lent:
        merged = lent.model(IDS).logits
    with loaded_model(ModelRef(base_key="k", base=base, merged=(first,), adapter=second), memory) as lent:
        stacked = lent.model(IDS).logits
        trained = [value for value in lent.model.parameters() if value.requires_grad]
        for factor in trained:
            factor.data.add_(1.0)
        lent.model.train()
    with loaded_model(plain, memory) as lent:
        after, got = state(lent.model), lent.model(IDS).logits
        training = lent.model.training

    assert trained
    assert (merged - stacked).norm() / stacked.norm() < 1e-6
    assert (merged - expected).norm() / expected.norm() > 1e-2
    assert not training
    assert torch.equal(got, expected)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_lease_takes_off_an_adapter_that_a_stage_attached(save_base):
    memory, weights = {}, ModelRef(base_key="k", base=save_base())

    with loaded_model(weights, memory) as lent:
        adapter.attach(lent.model, Lora(rank=4), seed=0)
    with loaded_model(weights, memory) as lent:
        names = [name for name, _ in lent.model.named_parameters()]

    assert not [name for name in names if "lora" in name]


@pytest.mark.slow
def test_base_of_a_failed_lease_is_loaded_again(save_base):
    memory, weights = {}, ModelRef(base_key="k", base=save_base())
    with loaded_model(weights, memory) as lent:
        clean = state(lent.model)

    def spoil():
        with loaded_model(weights, memory) as lent:
            next(lent.model.parameters()).data.zero_()
            raise RuntimeError("a stage failed")

    with pytest.raises(RuntimeError, match="a stage failed"):
        spoil()
    with loaded_model(weights, memory) as lent:
        again = state(lent.model)

    assert all(torch.equal(clean[name], again[name]) for name in clean)


def test_missing_padding_token_is_borrowed_without_resizing(save_base):
    weights = ModelRef(base_key="k", base=save_base(pad_token=None))

    with loaded_model(weights, {}) as lent:
        pad, size = lent.tokenizer.pad_token, lent.model.get_input_embeddings().num_embeddings

    assert (pad, size) == ("<unk>", 64)


@pytest.mark.slow
def test_merge_into_a_low_precision_base_is_warned_about(save_base, save_adapter, caplog):
    memory, base = {}, save_base()
    with loaded_model(ModelRef(base_key="k", base=base), memory) as lent:
        lent.model.to(torch.bfloat16)
    small = save_adapter("a", seed=1, scale=0.02)

    with (
        caplog.at_level(logging.WARNING),
        loaded_model(ModelRef(base_key="other", base=base, merged=(small,)), dict(memory)),
    ):
        quiet = list(caplog.records)
    with (
        caplog.at_level(logging.WARNING),
        loaded_model(ModelRef(base_key="k", base=base, merged=(small,)), memory) as lent,
    ):
        loud = [record.getMessage() for record in caplog.records]
        lost = lent.lost

    assert not quiet
    assert len(loud) == 1
    assert "rounding" in loud[0]
    assert len(lost) == 1
    assert f"{100 * lost[0]:.0f} %" in loud[0]


@pytest.mark.parametrize("damage", ["absent", "weights", "reference"])
def test_folder_without_a_model_is_a_model_error(damage, tmp_path, save_base):
    folder = tmp_path / "none" if damage == "absent" else save_base()
    if damage == "weights":
        (folder / "model.safetensors").write_bytes(b"short")
    if damage == "reference":
        (folder / "reference.json").write_text("{}")

    with pytest.raises(ModelError, match=str(folder)), loaded_model(ModelRef(base_key="k", base=folder), {}):
        pass
