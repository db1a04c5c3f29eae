"""What a method states about the training of a model's own weights is true of every method that ships."""

import re
from math import ceil
from pathlib import Path

import pytest
import test_repair_methods as repairs
import test_train_methods as trainings
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from harness.corpora.batches import Pool, RoleBatches
from harness.corpora.slices import Slice
from harness.errors import HarnessError
from harness.experiment.compatibility import incompatibilities
from harness.models.trained_weights import TrainedWeights, unfreeze
from harness.protocols import NeedsPlainLora, TrainsWeights, UsesAlignment, WorksOnShards
from harness.training.budget import Budget
from harness.training.learner import CausalLearner
from harness.training.trainer import train

TRAININGS, REPAIRS = trainings.discovered(), repairs.discovered()
PLAIN = 4
"""Copies of the weights that plain training holds besides the weights: the gradient as the learner returns it and as
the optimizer reads it, and the two moments of the optimizer."""
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "full_weights.md"
SLACK = 0.5
"""Activations, and what is held of one or two weights at a time, in copies of all weights: here one is a quarter."""


def build():
    """Return a model whose weights take much more memory than its activations."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2, vocab_size=50
    )
    model = LlamaForCausalLM(config).requires_grad_(False)
    unfreeze(model, TrainedWeights())
    return model


def peak(act, model):
    """Return the most memory that is allocated at once while a function runs, in copies of the model's weights."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        act()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most / sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def copies_in_training(name, work):
    model, (method, pools) = build(), trainings.prepared(name)

    def act():
        train(
            model,
            method=method,
            rows=trainings.rows(8, 1),
            pools=pools,
            budget=Budget(epochs=1, batch_size=4, learning_rate=1e-2),
            seed=3,
            pad_id=0,
            work=work,
            tracker=trainings.Tracker(),
        )

    return peak(act, model) - PLAIN


def copies_in_repair(name):
    model, method = build().eval(), REPAIRS[name](**repairs.SHORTENED.get(name, {}))
    learner = CausalLearner(model)
    start = [torch.zeros_like(parameter) for parameter in learner.trainables]
    pools = {need.role: Pool(repairs.rows(25), need.batch_size) for need in method.needs}
    batches = RoleBatches(pools, pad_id=0, seed=1)
    outputs = {"last": start, "mean": start, "safe": start}
    return peak(lambda: method.repair(learner, start=start, method_outputs=outputs, batches=batches), model)


def refused(slot, method):
    data: list[tuple[object, Slice]] = []
    problems = incompatibilities(slot, method, TrainedWeights(), TrainedWeights(), data)
    return [problem.text for problem in problems if "own weights" in problem.text]


@pytest.mark.parametrize("name", trainings.mostly_slow(TRAININGS))
def test_training_method_works_on_weights_with_the_copies_it_states_or_is_refused(name, tmp_path):
    method = trainings.METHODS[name]()
    if not isinstance(method, TrainsWeights):
        assert len(refused("finetune", method)) == 1
        if isinstance(method, NeedsPlainLora | UsesAlignment):
            with pytest.raises(HarnessError):
                copies_in_training(name, tmp_path)
        return

    variants = [each for each, make in trainings.METHODS.items() if make and type(make()) is type(method)]
    found = {each: copies_in_training(each, tmp_path / each) for each in variants}

    assert refused("finetune", method) == []
    assert max(0, ceil(max(found.values()) - SLACK)) == method.weight_copies, found


@pytest.mark.parametrize("name", trainings.mostly_slow(REPAIRS))
def test_repair_method_works_on_weights_with_the_copies_it_states_or_is_refused(name):
    method = REPAIRS[name]()
    if not isinstance(method, TrainsWeights):
        assert len(refused("repair", method)) == 1
        if isinstance(method, NeedsPlainLora | UsesAlignment):
            with pytest.raises(HarnessError):
                copies_in_repair(name)
        return

    found = copies_in_repair(name)

    assert refused("repair", method) == []
    assert max(0, ceil(found - SLACK)) == method.weight_copies, found


def test_documentation_names_the_methods_that_do_not_work_on_sharded_weights():
    _, _, rest = DOCUMENTATION.read_text().partition("| methods | all of the first table but")
    named = re.findall(r"`(\w+)`", rest.partition("|")[0])
    on_weights = {name for name, method in TRAININGS.items() if isinstance(method(), TrainsWeights)}

    assert set(named) == {name for name in on_weights if not isinstance(TRAININGS[name](), WorksOnShards)}


@pytest.mark.parametrize(("heading", "methods"), [("training", TRAININGS), ("the repair", REPAIRS)])
def test_table_of_the_documentation_has_the_copies_that_methods_state(heading, methods):
    _, _, table = DOCUMENTATION.read_text().partition(f"| copies in {heading} |")
    rows = [line.split("|")[1:3] for line in table.partition("\n\n")[0].splitlines()[2:]]
    listed = {name: copies.strip() for copies, names in rows for name in re.findall(r"`(\w+)`", names)}

    assert set(listed) == set(methods)
    for name, copies in listed.items():
        assert copies == str(getattr(methods[name], "weight_copies", "refused"))
