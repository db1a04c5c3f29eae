"""Every method that ships works on a base in four bits and leaves its bytes alone, or says that it cannot."""

from dataclasses import replace

import pytest
import test_repair_methods as repairs
import test_train_methods as trainings
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.corpora.batches import Pool, RoleBatches
from harness.models.adapter import Lora, attach
from harness.models.quantized import Quantization, keep_layout, loading_options
from harness.protocols import ReadsBaseWeights
from harness.training.learner import CausalLearner

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (pip install 'harness[quantized]')")
TRAININGS, REPAIRS = trainings.discovered(), repairs.discovered()
READING = {name for name, cls in (TRAININGS | REPAIRS).items() if isinstance(cls(), ReadsBaseWeights)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=50
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def build(folder, rank):
    options = loading_options(Quantization.NF4, torch.float32)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu", **options)
    keep_layout(model, "tiny")
    return attach(model.requires_grad_(False), Lora(rank=rank), seed=0)


def frozen(model):
    return {name: part.detach().clone() for name, part in model.named_parameters() if not part.requires_grad}


def test_methods_that_read_the_base_are_known():
    assert {"salora", "sn_tune"} == READING


@pytest.mark.parametrize("name", trainings.mostly_slow(sorted(TRAININGS.keys() - READING)))
def test_training_method_works_on_a_base_in_four_bits_and_leaves_it_as_it_was(name, saved, tmp_path):
    model = build(saved, rank=2)
    before, start = frozen(model), trainings.weights_of(model)

    trainings.run(name, tmp_path, model=model, budget=replace(trainings.BUDGET, epochs=1))

    after = frozen(model)
    assert sum(part.dtype == torch.uint8 for part in before.values()) == 14
    assert all(torch.equal(before[place], after[place]) for place in before)
    assert any(not torch.equal(start[place], part) for place, part in trainings.weights_of(model).items())


@pytest.mark.parametrize("name", trainings.mostly_slow(sorted(REPAIRS.keys() - READING)))
def test_repair_method_works_on_a_base_in_four_bits_and_leaves_it_as_it_was(name, saved):
    model = build(saved, rank=4).eval()
    with torch.no_grad():
        for place, factor in model.named_parameters():
            if "lora_B" in place:
                factor.normal_(std=0.1)
    before, method = frozen(model), REPAIRS[name](**repairs.SHORTENED.get(name, {}))
    learner = CausalLearner(model, alignment=repairs.alignment_of(model))
    pools = {need.role: Pool(repairs.rows(25), need.batch_size) for need in method.needs}
    half = [torch.full_like(parameter.detach(), 0.5) for parameter in learner.trainables]
    outputs = {"last": half, "mean": half, "safe": half, "unsafe": half}
    start = [torch.zeros_like(part) for part in half]

    method.repair(learner, start=start, method_outputs=outputs, batches=RoleBatches(pools, pad_id=0, seed=1))

    after = frozen(model)
    assert all(torch.equal(before[place], after[place]) for place in before)
