"""SPPFT on a model of four layers: layers 1 and 2 stay bit for bit, layers 0 and 3 are those of a plain run."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.corpora.encode import Encoded
from harness.defenses.sppft import SPPFT
from harness.errors import ModelError
from harness.models.adapter import Lora, attach
from harness.training.budget import Budget
from harness.training.learner import CausalLearner
from harness.training.trainer import train

ROWS = [Encoded([1, place, 3, place, 5], [-100, -100, 3, place, 5]) for place in range(2, 10)]
# Without clipping: its norm is over all that is trained.
BUDGET = Budget(epochs=1, batch_size=8, learning_rate=1e-2, weight_decay=0.1, max_grad_norm=None)


class Quiet:
    def log(self, metrics, *, step):
        pass

    def close(self):
        pass


def build(layers=4):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 20}
    model = attach(LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **sizes)), Lora(rank=2), seed=0)
    with torch.no_grad():
        # Factors that are not zero, so that decay would move every one of them.
        for parameter in factors(model).values():
            parameter.add_(0.1)
    return model


def factors(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def trained(method, work):
    model = build()
    report = train(model, method=method, rows=ROWS, budget=BUDGET, seed=0, pad_id=0, work=work, tracker=Quiet())
    return factors(model), report


@pytest.mark.slow
def test_frozen_layers_stay_bit_for_bit_and_the_others_are_those_of_a_plain_run(tmp_path):
    before = factors(build())
    plain, _ = trained(None, tmp_path / "plain")

    after, report = trained(SPPFT(first=1, last=2), tmp_path / "sppft")

    middle = [name for name in after if ".layers.1." in name or ".layers.2." in name]
    assert len(middle) == len(after) / 2 == report.metrics["frozen"]
    assert all(torch.equal(after[name], before[name]) for name in middle)
    assert not any(torch.equal(plain[name], before[name]) for name in plain)
    assert all(torch.equal(after[name], plain[name]) for name in after if name not in middle)


@pytest.mark.parametrize(("depth", "first", "last"), [(32, 5, 14), (30, 4, 13), (4, 0, 1), (2, 0, 0)])
def test_default_range_is_the_published_share_of_the_depth(depth, first, last):
    assert SPPFT().layers(depth) == range(first, last + 1)


@pytest.mark.parametrize("settings", [{"first": 1, "last": 4}, {"first": 4}, {"first": 0, "last": 3}])
def test_range_that_is_not_part_of_the_layers_is_refused(settings):
    with pytest.raises(ModelError, match="sppft"):
        SPPFT(**settings).start(CausalLearner(build()), None, 1)


def test_range_without_anything_that_is_trained_is_refused():
    model = build()
    for name, parameter in factors(model).items():
        parameter.requires_grad_(".layers.0." in name)

    with pytest.raises(ModelError, match="0 of 6 trainable"):
        SPPFT(first=1, last=2).start(CausalLearner(model), None, 1)


def test_settings_out_of_range_are_reported():
    assert [problem.path for problem in SPPFT(first=-1, last=-2).problems()] == ["first", "last"]
    assert [problem.path for problem in SPPFT(first=3, last=2).problems()] == ["last"]
    assert not SPPFT(first=2, last=2).problems()
