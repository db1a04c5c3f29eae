"""Memory of full-weight trainings in a plan: by hand for 7 billion parameters, and refused where it cannot fit."""

from dataclasses import replace

import pytest
import torch
from composed import compose
from safetensors.torch import save_file

from harness.config.build import cells_of
from harness.errors import ConfigError
from harness.local.settings import Local
from harness.models.saved import Parts, SavedModel
from harness.models.tiny import build_tokenizer
from harness.slurm.settings import Resources, Slurm
from harness.sweep.weight_training import check_weight_trainings, weight_trainings
from harness.training.memory import training_memory

BILLION = 10**9


WHOLE = Resources(minutes=10, processes=8, gpus=8)
SHARDED = Slurm(resources={"default": replace(WHOLE, sharding="fsdp")})


def trainings(*overrides, cluster=None):
    stages = [stage for cell in cells_of(compose(overrides)) for stage in cell.stages.values()]
    return weight_trainings(stages, cluster or Local())


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


def test_sharded_weights_are_shared_by_the_processes_and_some_layers_are_whole_on_each():
    memory = training_memory(7 * BILLION, 7 * BILLION, copies=1, shards=8, parts=Parts(layer=10**6, outside=10**7))

    assert memory.weights == memory.method == memory.gradients // 2 == memory.optimizer // 2 == 3.5 * BILLION
    assert memory.gathered == 4 * (3 * 10**7 + 4 * 10**6)
    assert memory.total == 6 * 3.5 * BILLION + memory.gathered


def test_kind_whose_processes_share_the_weights_is_counted_by_its_own_resources():
    cluster = Slurm(resources={"align": WHOLE, "default": replace(WHOLE, sharding="fsdp", nodes=2)})
    aligned, tuned = trainings("align.adapter=full", "finetune.adapter=single", cluster=cluster)

    assert (aligned.shards, tuned.shards) == (1, 16)
    assert aligned.memory.weights == pytest.approx(16 * tuned.memory.weights, rel=1e-3)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["defense=dp_noise"], "`dp_noise` is not shown to compute"),
        (["update=mezo"], r"directions of estimated gradients \(`finetune.update`\)"),
    ],
)
def test_training_that_does_not_work_on_sharded_weights_is_refused(overrides, reason):
    whole = ["align.adapter=full", "finetune.adapter=single"]

    check_weight_trainings(trainings(*whole, cluster=SHARDED), SHARDED)
    check_weight_trainings(trainings(*whole, *overrides), Local())
    with pytest.raises(ConfigError, match=rf"cluster.resources.finetune.sharding.*`fsdp`, but {reason}"):
        check_weight_trainings(trainings(*whole, *overrides, cluster=SHARDED), SHARDED)


def test_parts_of_a_saved_model_are_its_largest_layer_and_what_is_outside(tmp_path):
    shapes = {
        "model.layers.0.mlp.up_proj": (3, 5),
        "model.layers.0.input_layernorm": (5,),
        "model.layers.1.mlp": (2, 5),
    }
    shapes |= {"model.embed_tokens": (7, 5), "model.norm": (5,)}
    tensors = {f"{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors")

    assert SavedModel(tmp_path).parts() == Parts(layer=20, outside=40)
