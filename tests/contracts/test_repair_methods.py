"""What every method in the repair slot must keep to. Methods are found by walking ``harness/defenses``."""

import importlib
import inspect
import json
import pkgutil
from dataclasses import is_dataclass

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import harness.defenses
from harness.corpora.batches import Pool, RoleBatches
from harness.corpora.encode import Encoded
from harness.engine.identity import flatten, payload_of
from harness.errors import ModelError
from harness.models.adapter import Lora, attach, layer_of
from harness.protocols import NeedsPlainLora, Product
from harness.training.budget import Budget
from harness.training.learner import CausalLearner


def discovered():
    found = {}
    for module in pkgutil.walk_packages(harness.defenses.__path__, "harness.defenses."):
        for _, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if cls.__module__ == module.name and is_dataclass(cls) and hasattr(cls, "repair"):
                found[cls.name] = cls
    return found


METHODS = discovered()
SHORTENED = {
    "refusal_sft": {"safety_rows": 20, "budget": Budget(epochs=1)},
    "posthoc": {"refusal_rows": 20, "benign_rows": 20, "budget": Budget(epochs=1)},
    "safemerge": {"threshold": 1.0},
}
"""Settings that a method runs with here: its defaults take two hundred steps, or may change nothing."""


def build(**adapter):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=50
    )
    model = attach(LlamaForCausalLM(config), Lora(rank=4, **adapter), seed=0).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


def rows(count):
    drawn = torch.randint(1, 50, (count, 9), generator=torch.Generator().manual_seed(2)).tolist()
    return [Encoded(ids[: 5 + place % 4], [-100] * 3 + ids[3 : 5 + place % 4]) for place, ids in enumerate(drawn)]


def alignment_of(model):
    """Return a change by alignment of every adapted layer, whatever the adapter's variant."""
    rng = torch.Generator().manual_seed(3)
    return {
        layer_of(place): Product(torch.randn(len(model.get_parameter(place.replace("_A", "_B"))), 4, generator=rng), a)
        for place, a in ((place, factor.detach()) for place, factor in model.named_parameters() if "lora_A" in place)
    }


def repaired(name, *, seed=1, rows_at_once=None, **adapter):
    """Repair a model; return it with the facts."""
    model, method = build(**adapter), METHODS[name](**SHORTENED.get(name, {}))
    learner = CausalLearner(model, rows_at_once=rows_at_once, alignment=alignment_of(model))
    pools = {need.role: Pool(rows(25), need.batch_size) for need in method.needs}
    half = [torch.full_like(parameter.detach(), 0.5) for parameter in learner.trainables]
    method_outputs = {"last": half, "mean": half, "safe": half, "unsafe": half}
    start = [torch.zeros_like(part) for part in half]
    batches = RoleBatches(pools, pad_id=0, seed=seed)
    return model, method.repair(learner, start=start, method_outputs=method_outputs, batches=batches)


def test_discovery_finds_the_methods_that_ship():
    assert {"antidote", "panacea", "random_perturbation", "refusal_sft", "scaled_update"} <= set(METHODS)
    assert {"safe_lora", "resta", "safemerge", "safe_delta", "wise_ft"} <= set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_repair_defaults_are_in_range_hashable_and_have_an_identity(name):
    method = METHODS[name]()

    assert method.problems() == []
    assert hash(method) == hash(METHODS[name]())
    assert payload_of(method)["name"] == name == method.name
    assert all(need.rows is None or need.rows >= 1 for need in method.needs)


@pytest.mark.parametrize("name", METHODS)
def test_repair_changes_trainables_only_and_leaves_no_hook_and_no_gradient(name):
    before = build()

    after, _ = repaired(name)

    changed = {n for n, p in after.named_parameters() if not torch.equal(p, before.get_parameter(n))}
    assert changed
    assert all(after.get_parameter(place).requires_grad for place in changed)
    assert all(
        parameter.requires_grad == before.get_parameter(n).requires_grad for n, parameter in after.named_parameters()
    )
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in after.modules())
    assert all(parameter.grad is None for parameter in after.parameters())
    assert not after.training


@pytest.mark.parametrize("name", METHODS)
def test_repair_refuses_dora_if_and_only_if_its_settings_say_so_beforehand(name):
    refused = ""

    try:
        repaired(name, variant="dora")
    except ModelError as error:
        refused = str(error)

    assert ("plain LoRA" in refused) == isinstance(METHODS[name](), NeedsPlainLora)


@pytest.mark.parametrize("name", METHODS)
def test_repair_states_facts_that_a_manifest_can_hold(name):
    _, facts = repaired(name)

    assert facts
    assert json.loads(json.dumps(facts)) == facts


@pytest.mark.parametrize("name", METHODS)
def test_repair_comes_to_the_same_however_its_batches_are_cut(name):
    whole, facts = repaired(name)

    for rows_at_once in (1, 3, 100):
        cut, told = repaired(name, rows_at_once=rows_at_once)

        assert flatten(told) == pytest.approx(flatten(facts))
        for place, weight in whole.named_parameters():
            assert float((cut.get_parameter(place) - weight).norm()) <= 1e-5 * float(weight.norm())


@pytest.mark.parametrize("name", METHODS)
def test_repair_gives_the_same_weights_again(name):
    torch.manual_seed(1)
    (first, _), (second, _) = repaired(name), repaired(name)

    assert all(torch.equal(p, second.get_parameter(n)) for n, p in first.named_parameters())
