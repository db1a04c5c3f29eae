"""Every method that ships works on a 4-bit base and leaves its bytes as they are, or declares that it reads them.

Without bitsandbytes these tests are skipped; `test_quantized_environment` runs them in that of `make quantized`.
"""

from dataclasses import replace

import pytest
import test_repair_methods as repairs
import test_train_methods as trainings
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.corpora.batches import Pool, RoleBatches
from harness.models.adapter import Lora, attach, detach
from harness.models.quantized import Quantization, keep_layout, loading_options
from harness.protocols import ReadsBaseWeights, TrainsInOnePlace
from harness.training.learner import CausalLearner

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: run `make quantized`")
TRAININGS, REPAIRS = trainings.discovered(), repairs.discovered()
READING = {name for name, cls in (TRAININGS | REPAIRS).items() if isinstance(cls(), ReadsBaseWeights)}
WHOLE = {name for name, cls in TRAININGS.items() if isinstance(cls(), TrainsInOnePlace)} - READING
"""Methods that do more in a training than a step computes."""
STEPPED = TRAININGS.keys() - READING - WHOLE


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=50
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    options = loading_options(Quantization.NF4, torch.float32)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu", **options)
    keep_layout(model, "tiny")
    return model.requires_grad_(False)


@pytest.fixture
def adapted(base):
    """Return what attaches an adapter to the base; check that the base is unchanged at the end."""
    before = {name: part.detach().clone() for name, part in base.named_parameters()}
    assert sum(part.dtype == torch.uint8 for part in before.values()) == 14
    yield lambda rank: attach(base, Lora(rank=rank), seed=0)
    detach(base)
    assert all(torch.equal(before[name], part) for name, part in base.named_parameters())


def test_methods_are_discovered_and_those_that_read_the_base_are_known():
    assert {"booster", "vaccine", "lisa"} <= STEPPED
    assert "panacea" in WHOLE
    assert {"salora", "sn_tune"} == READING


@pytest.mark.parametrize("name", sorted(STEPPED))
def test_steps_of_a_method_have_gradients_on_a_4_bit_base(name, adapted):
    gradients, _ = trainings.stepped(name, None, make=lambda: adapted(2))

    assert all(bool(part.isfinite().all()) for part in gradients)
    assert any(bool(part.any()) for part in gradients)


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_training_with_a_method_changes_the_adapter_of_a_4_bit_base(name, adapted, tmp_path):
    model = adapted(2)
    start = trainings.weights_of(model)

    trainings.run(name, tmp_path, model=model, budget=replace(trainings.BUDGET, epochs=1))

    assert any(not torch.equal(start[place], part) for place, part in trainings.weights_of(model).items())


@pytest.mark.parametrize("name", sorted(set(trainings.CHOOSING) - READING))
def test_method_chooses_examples_on_a_4_bit_base(name, adapted):
    assert trainings.chosen(name, make=lambda: adapted(2))


@pytest.mark.parametrize("name", sorted(REPAIRS.keys() - READING))
def test_repair_changes_the_adapter_of_a_4_bit_base(name, adapted):
    model = adapted(4).eval()
    with torch.no_grad():
        for place, factor in model.named_parameters():
            if "lora_B" in place:
                factor.normal_(std=0.1)
    learner, method = CausalLearner(model, alignment=repairs.alignment_of(model)), REPAIRS[name]
    method = method(**repairs.SHORTENED.get(name, {}))
    pools = {need.role: Pool(repairs.rows(25), need.batch_size) for need in method.needs}
    half = [torch.full_like(parameter.detach(), 0.5) for parameter in learner.trainables]
    outputs = {"last": half, "mean": half, "safe": half, "unsafe": half}
    before = trainings.weights_of(model)

    method.repair(
        learner,
        start=[torch.zeros_like(part) for part in half],
        method_outputs=outputs,
        batches=RoleBatches(pools, pad_id=0, seed=1),
    )

    assert any(not torch.equal(before[place], part) for place, part in trainings.weights_of(model).items())
