"""Refusal SFT by hand: w = (3, 4), the refusals' loss is w1 - 2 w2, learning rate 0.1, decay 0.5.

The gradient is (1, -2) in every step, so each update of Adam is 0.1 times its signs, after the decay by 0.05. First
step: (3, 4) * 0.95 - 0.1 (1, -1) = (2.75, 3.9); second: (2.6125, 3.705) - (0.1, -0.1) = (2.5125, 3.805).
The loss is 3 - 8 = -5 in the first step and 2.75 - 7.8 = -5.05 in the second.
"""

import pytest
import torch
from quadratic import ModelRef, TinyLearner
from transformers import LlamaConfig, LlamaForCausalLM
from user_learner import Safety

from harness.corpora.batches import Pool, RoleBatches
from harness.corpora.encode import Encoded
from harness.corpora.examples import Role
from harness.defenses.refusal_sft import RefusalSFT
from harness.errors import ModelError
from harness.models.adapter import Lora, attach
from harness.training.budget import Budget, Optimizer, Scheduler
from harness.training.learner import CausalLearner
from harness.training.trainer import train

ROWS = [Encoded([1, place, 3, place, 5], [-100, -100, 3, place, 5]) for place in range(2, 10)]


def repaired(learner, batches, **settings):
    return RefusalSFT(**settings).repair(learner, start=[], method_outputs={}, batches=batches)


def test_two_steps_are_those_computed_by_hand():
    weights, safety = ModelRef(3.0, 4.0), Safety({"kind": "refusal"})
    learner = TinyLearner(weights, {"refusal": lambda w: (w.first - 2 * w.second).sum()})
    budget = Budget(epochs=2, batch_size=4, learning_rate=0.1, weight_decay=0.5, max_grad_norm=None)

    facts = repaired(learner, safety, safety_rows=4, budget=budget)

    assert [weights.first.item(), weights.second.item()] == pytest.approx([2.5125, 3.805], abs=1e-6)
    assert facts == pytest.approx({"steps": 2, "first_loss": -5.0, "last_loss": -5.05})
    assert safety.roles == [Role.REFUSAL] * 2
    assert weights.first.grad is None


@pytest.mark.parametrize(("rows", "epochs", "batch_size", "steps"), [(100, 20, 10, 200), (12, 3, 10, 4), (5, 1, 10, 1)])
def test_steps_are_as_many_as_the_refusals_of_safe_instruct_fill(rows, epochs, batch_size, steps):
    learner = TinyLearner(ModelRef(1.0, 1.0), {"refusal": lambda w: w.first.sum()})
    budget = Budget(epochs=epochs, batch_size=batch_size)

    facts = repaired(learner, Safety({"kind": "refusal"}), safety_rows=rows, budget=budget)

    assert facts["steps"] == steps


def build():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 20}
    return attach(LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **sizes)), Lora(rank=2), seed=0)


class Quiet:
    def log(self, metrics, *, step):
        pass

    def close(self):
        pass


@pytest.mark.parametrize(
    "optimizer",
    [{"adam_beta1": 0.5, "adam_beta2": 0.9, "adam_epsilon": 1e-3}, {"optimizer": Optimizer.SGD}],
    ids=["adamw", "sgd"],
)
def test_training_is_that_of_the_training_loop_with_the_same_budget(optimizer, tmp_path):
    # One batch of all rows, so that their order cannot matter; every part of a budget is in use.
    budget = Budget(
        epochs=6,
        batch_size=8,
        learning_rate=1e-2,
        weight_decay=0.3,
        scheduler=Scheduler.COSINE,
        warmup_ratio=0.3,
        max_grad_norm=0.5,
        **optimizer,
    )
    theirs, ours = build(), build().eval()
    train(theirs, method=None, rows=ROWS, budget=budget, seed=0, pad_id=0, work=tmp_path, tracker=Quiet())

    batches = RoleBatches({Role.REFUSAL: Pool(ROWS, 8)}, pad_id=0, seed=0)
    repaired(CausalLearner(ours), batches, safety_rows=8, budget=budget)

    for name, weight in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name), weight, rtol=1e-4, atol=1e-6)


def test_run_that_diverges_is_refused():
    learner = TinyLearner(ModelRef(1.0, 1.0), {"refusal": lambda w: (w.first / 0).sum()})

    with pytest.raises(ModelError, match="loss on refusals is nan"):
        repaired(learner, Safety({"kind": "refusal"}), safety_rows=10)


def test_settings_out_of_range_are_reported():
    assert [problem.path for problem in RefusalSFT(safety_rows=0).problems()] == ["safety_rows"]
    (need,) = RefusalSFT(safety_rows=30, budget=Budget(batch_size=6)).needs
    assert (need.role, need.rows, need.batch_size) == (Role.REFUSAL, 30, 6)
