"""Memory of full-weight trainings in a plan: by hand for 7 billion parameters, and refused where it cannot fit."""

from dataclasses import replace

import pytest
import torch
from composed import compose
from safetensors.torch import save_file

from harness.config.build import cells_of
from harness.errors import ConfigError
from harness.local.settings import Local
from harness.models.saved import SavedModel
from harness.models.tiny import build_tokenizer
from harness.slurm.settings import Resources, Slurm
from harness.sweep.weight_training import check_weight_trainings, weight_trainings
from harness.training.memory import training_memory

BILLION = 10**9


def trainings(*overrides):
    return weight_trainings([stage for cell in cells_of(compose(overrides)) for stage in cell.stages.values()])


def test_seven_billion_weights_by_hand():
    memory = training_memory(7 * BILLION, 7 * BILLION, copies=3)

    assert memory.weights == 28 * BILLION
    assert memory.gradients == 56 * BILLION
    assert memory.optimizer == 56 * BILLION
    assert memory.method == 84 * BILLION
    assert memory.total == 224 * BILLION
    assert memory.without_optimizer == 168 * BILLION


def test_frozen_weights_have_no_gradient_and_no_moments():
    assert training_memory(7 * BILLION, 2 * BILLION, copies=1).total == (28 + 5 * 4 * 2) * BILLION


def test_plain_gradient_descent_keeps_no_moments():
    (_, tuned) = trainings("align.adapter=full", "finetune.adapter=single", "update=mezo")

    assert tuned.memory.optimizer == 0
    assert tuned.memory.total == 3 * tuned.memory.weights


def test_each_kind_of_training_of_a_plan_is_listed_once_with_the_copies_of_its_method():
    found = {
        (training.kind, training.method): training.memory.method // training.memory.weights
        for training in trainings("align.adapter=full", "finetune.adapter=single", "defense=lisa")
    }

    assert found == {("align", "sft"): 0, ("finetune", "lisa"): 3}


def test_adapters_and_stages_that_train_nothing_are_not_listed():
    assert trainings("finetune.adapter=double", "+finetune.fresh=none") == []


def test_size_of_the_tiny_model_is_counted_before_it_exists():
    (only,) = trainings("align.adapter=full", "finetune.adapter=double", "+finetune.fresh={rank: 4}")

    attention, feed_forward, norms = 4 * 128 * 128, 3 * 128 * 256, 2 * 128
    entries = len(build_tokenizer()) * 128 + 2 * (attention + feed_forward + norms) + 128
    assert only.memory.weights == 4 * entries
    assert trainings("align.adapter=full:mlp", "finetune.adapter=double", "+finetune.fresh=none")[0].memory is None


def test_parameters_of_named_modules_are_counted_from_the_headers_of_a_saved_model(tmp_path):
    weights = {"model.layers.0.mlp.up_proj.weight": (3, 5), "model.embed_tokens.weight": (7, 5)}
    save_file({name: torch.zeros(shape) for name, shape in weights.items()}, tmp_path / "model.safetensors")

    assert SavedModel(tmp_path).parameters() == 50
    assert SavedModel(tmp_path).parameters(["mlp"]) == 15


def test_training_that_cannot_fit_is_refused_with_both_numbers():
    (only,) = trainings("align.adapter=full", "finetune.adapter=double", "+finetune.fresh=none")
    big = only._replace(memory=training_memory(7 * BILLION, 7 * BILLION, copies=0))

    check_weight_trainings([big], Local(gpu_memory_gib=131))
    check_weight_trainings([big], Local())
    with pytest.raises(ConfigError, match=r"`align.adapter`: .* needs 130.4 GiB on each GPU.*has 80.0 GiB"):
        check_weight_trainings([big], Local(gpu_memory_gib=80))


def test_sharding_of_a_kind_that_trains_weights_is_refused():
    (only,) = trainings("align.adapter=full", "finetune.adapter=double", "+finetune.fresh=none")
    whole = Resources(minutes=10)
    cluster = Slurm(resources={"align": whole, "default": replace(whole, sharding="fsdp")})

    check_weight_trainings([only], cluster)
    with pytest.raises(ConfigError, match=r"cluster.resources.align.sharding.*only frozen weights can be sharded"):
        check_weight_trainings([only], replace(cluster, resources={"default": replace(whole, sharding="fsdp")}))
