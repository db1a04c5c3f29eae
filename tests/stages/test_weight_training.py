"""Training of a model's own weights: real stages on the tiny model, from alignment to grades."""

import json

import pytest
import torch
from composed import compose
from test_repair import SMALL

from harness.config.build import cells_of
from harness.engine.plan import Plan
from harness.engine.store import Store
from harness.local.executor import LocalExecutor
from harness.models.loading import loaded_model, weights_of

WHOLE = [line for line in SMALL if not line.startswith("align.adapter")]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def run(store):
    """Run the stages of a cell; return them by role."""

    def run_once(*overrides, parts=("finetune",)):
        (cell,) = cells_of(compose([*WHOLE, *overrides]))
        outcome = LocalExecutor().run(Plan.of([cell.stages[part] for part in parts]), store)
        assert outcome.complete, outcome.failed
        return cell.stages

    return run_once


def facts(store, stage):
    return json.loads((store.path(stage) / "manifest.json").read_text())["facts"]


def differing(store, first, second):
    """Return the names of the weights in which two stages' models differ; adapters are left out."""
    one, other = weights_of(first.weights(store.path)), weights_of(second.weights(store.path))
    return {name for name in one if not torch.equal(one[name], other[name])}


def test_cell_of_a_full_alignment_and_an_adapter_runs_to_its_grades(run, store):
    stages = run(
        "align.adapter=full",
        "finetune.adapter=double",
        "+finetune.fresh={rank: 4}",
        parts=("harm", "accuracy", "aligned_harm"),
    )

    every = set(weights_of(stages["base"].weights(store.path)))
    assert differing(store, stages["base"], stages["align"]) == every
    assert sorted(each.name for each in (store.path(stages["align"]) / "weights").iterdir()) == [
        "model.safetensors",
        "model.safetensors.index.json",
    ]
    stored = facts(store, stages["align"])["weights"]
    assert 0.9 < stored["changed"] <= 1
    assert stored["bytes"] <= stored["whole_bytes"]
    tuned = stages["finetune"].weights(store.path)
    assert tuned.weights == stages["align"].weights(store.path).weights
    assert tuned.merged == ()
    with loaded_model(tuned, {}) as loaded:
        assert loaded.model.peft_config["default"].r == 4
        # The weights under the adapter are the aligned ones, bit for bit.
        base = weights_of(stages["align"].weights(store.path))
        embedding = loaded.model.get_base_model().get_input_embeddings().weight
        assert torch.equal(embedding, base["model.embed_tokens.weight"])
    assert "score" in json.loads((store.path(stages["harm"]) / "summary.json").read_text())


def test_full_training_goes_on_with_the_aligned_weights(run, store):
    stages = run("align.adapter=full", "finetune.adapter=single")

    assert differing(store, stages["align"], stages["finetune"])
    assert stages["finetune"].weights(store.path).adapter is None


def test_adapter_is_merged_before_the_weights_are_trained(run, store):
    stages = run("finetune.adapter=double", "+finetune.fresh=full:mlp", "finetune.budget.learning_rate=1e-9")
    names = {name.split(".")[-2] for name in differing(store, stages["base"], stages["finetune"])}

    # The aligned adapter's three matrices as they were merged, and what the tiny steps moved.
    adapted, mlp = {"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj", "down_proj"}
    assert adapted <= names <= adapted | mlp


def test_nothing_trained_leaves_the_model_as_it_was(run, store):
    stages = run("finetune.adapter=double", "+finetune.fresh=none")

    assert stages["finetune"].weights(store.path) == stages["align"].weights(store.path)
    assert facts(store, stages["finetune"])["steps"] == 0
    assert "nothing is trained" in facts(store, stages["finetune"])["notes"][0]


def test_alignment_of_none_is_the_base(run, store):
    stages = run("align.adapter=none", "finetune.adapter=double", "+finetune.fresh={rank: 4}")

    assert stages["align"].weights(store.path) == stages["base"].weights(store.path)
    assert facts(store, stages["align"])["steps"] == 0
    assert stages["align"].examples_seen(store.path) == []


def test_repair_takes_back_half_of_the_change_of_the_weights(run, store):
    stages = run("align.adapter=full", "finetune.adapter=single", "defense=scaled_update", parts=("repair",))
    aligned, tuned, repaired = (
        weights_of(stages[part].weights(store.path)) for part in ("align", "finetune", "repair")
    )

    for name, value in repaired.items():
        expected = aligned[name] + 0.5 * (tuned[name] - aligned[name])
        assert torch.allclose(value, expected, rtol=0, atol=1e-7)
    assert facts(store, stages["repair"])["change"]["finetune_norm"] > 0
