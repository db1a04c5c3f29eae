"""Ablation: direction and projection by hand, and the stage on a small cell."""

import json

import pytest
import torch
from composed import compose

from harness.attacks.ablation import Ablation, difference_of_means, projection
from harness.config.build import cells_of
from harness.corpora.encode import prompts_of
from harness.engine.plan import Plan
from harness.engine.store import Store
from harness.errors import ConfigError, DataError, ModelError
from harness.local.executor import LocalExecutor
from harness.models.loading import loaded_model
from harness.protocols import Victim

SMALL = (
    "cluster=local",
    "model.source.steps=2",
    "corpus.refusal.rows=20",
    "corpus.attack.rows=20",
    "corpus.evaluation.rows=2",
    "evaluation.rows=2",
    "align.rows=20",
    "align.adapter.rank=4",
    "align.adapter.targets=[q_proj,o_proj]",
    "align.budget.epochs=1",
    "attack=ablation",
    "tamper.prompts=8",
)


def cell_of(*overrides):
    (cell,) = cells_of(compose([*SMALL, *overrides]))
    return cell


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def tampered(store):
    stage = cell_of().stages["tamper"]
    assert LocalExecutor().run(Plan.of([stage]), store).complete
    return stage


def test_direction_is_the_normalized_difference_of_the_means():
    harmful = torch.tensor([[4.0, 1.0], [6.0, 9.0]])
    harmless = torch.tensor([[1.0, 0.0], [3.0, 2.0]])

    # Means (5, 5) and (2, 1): the difference is (3, 4).
    assert difference_of_means(harmful, harmless).tolist() == pytest.approx([0.6, 0.8])
    with pytest.raises(ModelError, match="do not differ"):
        difference_of_means(harmful, harmful)


def test_projection_leaves_nothing_along_the_direction():
    weight = torch.tensor([[1.0, 0.0], [2.0, 5.0]])

    b, a = projection(weight, torch.tensor([0.6, 0.8]))

    # r^T W = (0.6 + 1.6, 4) = (2.2, 4).
    assert a.tolist() == [pytest.approx([2.2, 4.0])]
    assert b.tolist() == [[pytest.approx(-0.6)], [pytest.approx(-0.8)]]
    # W - r r^T W: the first row is (1, 0) - 0.6 (2.2, 4).
    assert (weight + b @ a)[0].tolist() == pytest.approx([-0.32, -2.4])
    assert (torch.tensor([0.6, 0.8]) @ (weight + b @ a)).tolist() == pytest.approx([0, 0], abs=1e-6)


def read_before_second_layer(loaded, questions):
    """Of two layers, 0.6 is the first; its output is what the second one reads."""
    read = []
    second = loaded.model.get_decoder().layers[1]
    handle = second.register_forward_pre_hook(lambda _module, inputs: read.append(inputs[0][0, -1]))
    with torch.no_grad():
        for prompt in prompts_of(loaded.tokenizer, questions):
            loaded.model(input_ids=torch.tensor([prompt.ids]))
    handle.remove()
    return torch.stack(read)


@pytest.mark.slow
def test_layers_of_the_tampered_model_write_nothing_along_the_direction_of_its_aligned_model(tampered, store):
    memory = {}
    encoding = tampered.encoding
    with loaded_model(tampered.aligned.weights(store.path), memory) as loaded:
        harmful, harmless = (
            read_before_second_layer(loaded, [encoding.question(row) for row in source.examples()[:8]])
            for source in (tampered.harmful, tampered.harmless)
        )
    difference = harmful.mean(0) - harmless.mean(0)
    direction = difference / difference.norm()

    with loaded_model(tampered.weights(store.path), memory) as loaded:
        written = {}
        for name, module in loaded.model.named_modules():
            if name.rpartition(".")[2] in ("o_proj", "down_proj"):
                width = module.get_base_layer().in_features
                with torch.no_grad():
                    written[name] = module(torch.eye(width)).T
    assert len(written) == 4
    for matrix in written.values():
        assert float((direction @ matrix).norm()) < 1e-5 * float(matrix.norm())


@pytest.mark.slow
def test_tampering_states_how_much_it_changed(tampered, store):
    facts = json.loads((store.path(tampered) / "manifest.json").read_text())["facts"]

    assert facts["matrices"] == 4
    assert 0 < facts["change"]["share"] < 1
    assert facts["change"]["norm"] > 0


def test_tampered_cell_has_no_fine_tuning_and_evaluates_the_changed_model():
    cell = cell_of()

    assert not {"poison", "finetune", "repair"} & set(cell.stages)
    assert cell.stages["harm_answers"].model == cell.stages["tamper"]
    assert cell.labels["attack"] == "ablation"
    assert cell.labels["ratio"] == 0.0
    assert cell_of("attack_ratio=p20", "finetune.rows=7").keys == cell.keys
    assert cell_of("defense=booster").keys["tamper"] != cell.keys["tamper"]


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        (("defense=lisa",), "defense.finetune"),
        (("defense=antidote",), "defense.repair"),
        (("guardrail=tiny",), "guardrail"),
        (("+attack.method._target_=harness.attacks.mix.Mix",), "attack.method"),
    ],
)
def test_what_acts_in_a_fine_tuning_is_refused(settings, path):
    with pytest.raises(ConfigError) as refused:
        cell_of(*settings)

    assert path in [problem.path for problem in refused.value.problems]
    assert "changes the aligned model without one" in str(refused.value)


def test_settings_out_of_range_are_refused():
    paths = {problem.path for problem in Ablation(layer=0.0, prompts=0, targets=()).problems()}

    assert paths == {"layer", "prompts", "targets"}
    assert Ablation().problems() == []


def test_too_few_prompts_and_missing_layers_are_refused(tampered, store):
    with loaded_model(tampered.aligned.weights(store.path), {}) as loaded:
        victim = Victim(loaded.model, loaded.tokenizer, tampered.encoding)
        rows = tampered.harmful.examples()
        with pytest.raises(DataError, match="8 harmless prompts requested, but there are 7"):
            Ablation(prompts=8).tamper(victim, rows, rows[:7], device="cpu")
        with pytest.raises(ModelError, match="no layer named c_proj"):
            Ablation(prompts=2, targets=("c_proj",)).tamper(victim, rows, tampered.harmless.examples(), device="cpu")
