"""ML-LR on a small model: AdamW's first step is the learning rate, in the direction of the gradient."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.corpora.encode import Encoded
from harness.defenses.ml_lr import MLLR
from harness.errors import ModelError
from harness.models.adapter import Lora, attach
from harness.training.budget import Budget
from harness.training.learner import CausalLearner
from harness.training.trainer import train

ROWS = [Encoded([1, 2, 3, 4], [-100, 2, 3, 4]), Encoded([5, 6, 7], [-100, 6, 7])]
BUDGET = Budget(epochs=1, batch_size=2, learning_rate=1e-3, weight_decay=0.1, max_grad_norm=None)


def build(targets=("q_proj", "k_proj", "v_proj")):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 20}
    return attach(LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **sizes)), Lora(rank=2, targets=targets), seed=0)


class Silent:
    def log(self, metrics, *, step):
        self.metrics = metrics

    def close(self):
        pass


def test_first_step_is_factor_times_as_long_in_the_set_and_decays_as_much_more(tmp_path):
    model, tracker = build(), Silent()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_A" in name}

    train(
        model,
        method=MLLR(modules=("v_proj",), factor=4.0),
        rows=ROWS,
        budget=BUDGET,
        seed=3,
        pad_id=0,
        work=tmp_path,
        tracker=tracker,
    )

    steps = {name.split(".")[-4]: p.detach().abs().max() for name, p in model.named_parameters() if "lora_B" in name}
    # B starts at zero, where decay does nothing.
    assert {name: float(step) for name, step in steps.items()} == pytest.approx(
        {"q_proj": 1e-3, "k_proj": 1e-3, "v_proj": 4e-3}, rel=1e-3
    )
    # While B is zero A has no gradient, and decays alone.
    for name, first in before.items():
        decay = 4e-4 if "v_proj" in name else 1e-4
        torch.testing.assert_close(model.get_parameter(name).detach(), first * (1 - decay), rtol=1e-6, atol=0)
    assert tracker.metrics["learning_rate"] == 1e-3


@pytest.mark.parametrize(
    ("modules", "targets", "reason"),
    [
        (("o_proj",), ("q_proj", "v_proj"), "`o_proj`, of which nothing is trained"),
        (("q_proj", "v_proj"), ("q_proj", "v_proj"), "every module that is trained"),
    ],
)
def test_set_must_be_a_part_of_what_is_trained(modules, targets, reason):
    with pytest.raises(ModelError, match=reason):
        MLLR(modules=modules).start(CausalLearner(build(targets)), None, 1)


def test_settings_out_of_range_are_reported():
    assert [problem.path for problem in MLLR(modules=(), factor=0.0).problems()] == ["factor", "modules"]
