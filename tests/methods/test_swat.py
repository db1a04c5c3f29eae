"""SWAT on a small model: of eight steps the first four move the query and key adapters only."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.defenses.swat import SWAT
from harness.errors import ModelError
from harness.models.adapter import Lora, attach
from harness.training.learner import CausalLearner

IDS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
BATCH = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}
ROBUST = ("q_proj", "k_proj")


def build(targets=("q_proj", "k_proj", "v_proj")):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 20}
    base = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **sizes))
    model = attach(base, Lora(rank=2, targets=targets), seed=0)
    with torch.no_grad():
        # Factors that are not zero, so that decay would move every one of them.
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    return model


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_only_the_set_moves_during_the_warm_up_and_everything_afterwards():
    model = build()
    learner = CausalLearner(model)
    step = SWAT(modules=ROBUST, warmup_share=0.5).start(learner, None, 8)
    optimizer = torch.optim.AdamW(learner.trainables, lr=1e-2, weight_decay=0.1)
    history, frozen = [weights(model)], []
    for place in range(8):
        learner.steps_taken = place
        frozen.append(step.backward(BATCH)["frozen"])
        optimizer.step()
        history.append(weights(model))

    assert frozen == [2] * 4 + [0] * 4
    names = list(history[0])
    assert len(names) == 6
    value = [name for name in names if "v_proj" in name]
    assert all(torch.equal(history[0][name], history[4][name]) for name in value)
    assert not any(torch.equal(history[4][name], history[5][name]) for name in names)
    assert not any(torch.equal(history[0][name], history[1][name]) for name in names if name not in value)
    assert all(parameter.requires_grad for parameter in learner.trainables)


@pytest.mark.parametrize(("share", "first"), [(0.0, 0), (0.1, 2), (1.0, 2)])
def test_warm_up_lasts_the_share_of_the_steps_rounded_up(share, first):
    learner = CausalLearner(build())
    step = SWAT(modules=ROBUST, warmup_share=share).start(learner, None, 8)

    assert step.backward(BATCH)["frozen"] == first


def test_gradients_during_the_warm_up_are_those_of_a_plain_step():
    learner = CausalLearner(build())
    _, plain = learner.gradient(BATCH)

    SWAT(modules=ROBUST, warmup_share=0.5).start(learner, None, 8).backward(BATCH)

    found = [parameter.grad for parameter in learner.trainables]
    assert sum(part is None for part in found) == 2
    assert all(part is None or torch.equal(part, expected) for part, expected in zip(found, plain, strict=True))


@pytest.mark.parametrize(
    ("modules", "message"), [(("o_proj",), "warms up `o_proj`"), (("q_proj", "k_proj", "v_proj"), "no second phase")]
)
def test_set_that_is_not_a_part_of_what_is_trained_is_refused(modules, message):
    with pytest.raises(ModelError, match=message):
        SWAT(modules=modules).start(CausalLearner(build()), None, 8)


def test_settings_out_of_range_are_reported():
    assert [problem.path for problem in SWAT(modules=(), warmup_share=1.5).problems()] == ["warmup_share", "modules"]
