"""The evaluation's own encoding, and further questions that an attack or a defense asks for."""

from dataclasses import replace

import pytest
from composed import compose

from harness.config.build import cells_of
from harness.corpora.encode import Encoding
from harness.corpora.examples import Example
from harness.corpora.probe import EncodingChange
from harness.corpora.template import Template
from harness.errors import ConfigError

ATTACK = ("targets=[probing.]", "attack.method._target_=probing.Triggered")
DEFENSE = ("targets=[probing.]", "+defense.repair._target_=probing.Guarded")
HARM, COST = ("harm_answers", "harm"), ("task_answers", "accuracy", "over_refusal_answers", "over_refusal")
EVALUATED = {prefix + part for prefix in ("", "aligned_") for part in (*HARM, *COST)}


def cell_of(*overrides):
    (cell,) = cells_of(compose(list(overrides)))
    return cell


def test_null_keeps_the_encoding_of_the_model_and_every_key():
    assert cell_of("evaluation.encoding=null").keys == cell_of().keys
    assert cell_of("evaluation.encoding.template=plain").keys == cell_of().keys


def test_encoding_of_the_evaluation_changes_generations_and_grades_only():
    plain, asked = cell_of(), cell_of("evaluation.encoding.template=alpaca", "evaluation.encoding.prefix='please '")

    differing = {part for part in plain.keys if plain.keys[part] != asked.keys[part]}
    assert differing == EVALUATED
    expected = replace(plain.stages["harm_answers"].encoding, template=Template.ALPACA, prefix="please ")
    for part in (part for part in EVALUATED if part.endswith("answers")):
        assert asked.stages[part].encoding == expected
    assert asked.stages["finetune"].encoding.template is Template.PLAIN
    assert (plain.stages["harm"].marker, asked.stages["harm"].marker) == (None, "### Response:")
    assert asked.protocol["encoding.fields.prefix"] == "please "
    assert asked.protocol["encoding.fields.template"] == "alpaca"


def test_prefix_suffix_and_system_prompt_surround_the_request():
    change = EncodingChange(system="be kind", prefix="dear ", suffix=" now")
    question = change.of(Encoding(template=Template.PLAIN, newline=False)).question

    assert question(Example("how", "")) == "be kind dear how now :"
    assert question(Example("how", "", "it")) == "be kind dear how it now :"
    alpaca = change.of(Encoding()).question(Example("how", "", "it"))
    assert alpaca.startswith("be kind\n\nBelow is an instruction")
    assert "### Instruction:\ndear how\n\n### Input:\nit now\n\n" in alpaca
    assert [
        message.content for message in change.of(Encoding(template=Template.CHAT)).question(Example("how", ""))
    ] == [
        "be kind",
        "dear how now",
    ]


def test_probe_of_an_attack_asks_the_same_models_another_question():
    cell = cell_of(*ATTACK)

    (probe,) = cell.probes
    assert probe.swept == {**cell.swept, "probe": "triggered"}
    assert probe.labels == cell.labels
    assert set(probe.keys) == set(cell.keys) - {prefix + part for prefix in ("", "aligned_") for part in COST}
    differing = {part for part in probe.keys if probe.keys[part] != cell.keys[part]}
    assert differing == {prefix + part for prefix in ("", "aligned_") for part in HARM}
    assert probe.stages["harm_answers"].encoding.suffix == " now"
    assert cell.stages["harm_answers"].encoding.suffix is None
    assert probe.stages["harm_answers"].prompts == cell.stages["harm_answers"].prompts
    assert probe.protocol["encoding.fields.suffix"] == " now"
    assert "encoding.fields.suffix" not in cell.protocol


def test_probe_is_asked_without_harmful_examples_too():
    assert [probe.swept["probe"] for probe in cell_of(*ATTACK, "attack_ratio=p00").probes] == ["triggered"]


def test_probe_of_a_defense_can_measure_accuracy():
    cell = cell_of(*DEFENSE)

    (probe,) = cell.probes
    assert set(probe.keys) == set(cell.keys)
    assert {part for part in probe.keys if probe.keys[part] != cell.keys[part]} == EVALUATED
    assert probe.stages["task_answers"].encoding.system == "the secret"


def test_probes_of_attack_and_defense_add_up_over_the_encoding_of_the_evaluation():
    cell = cell_of(*ATTACK, *DEFENSE[1:], "evaluation.encoding.prefix='please '")

    assert [(probe.swept["probe"], probe.stages["harm"].answers.encoding.prefix) for probe in cell.probes] == [
        ("triggered", "please "),
        ("secret", "please "),
    ]


def test_two_probes_of_one_label_are_refused():
    with pytest.raises(ConfigError) as refused:
        cell_of(*ATTACK, *DEFENSE[1:], "+defense.repair.label=triggered")

    assert {problem.path for problem in refused.value.problems} == {"attack.method", "defense.repair"}
    assert "its probe `triggered` has the label of another one" in str(refused.value)
