"""What every method at inference must keep to. Methods are the options of ``conf/serve``."""

import importlib
import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from composed import compose
from transformers import LlamaConfig, LlamaForCausalLM

from harness.config.build import cells_of
from harness.config.shipped import CONF
from harness.corpora.examples import Example
from harness.generation.decoding import Decoding
from harness.generation.served import answer
from harness.models.adapter import Lora, attach
from harness.models.tiny import build_tokenizer
from harness.protocols import Calibrated, RejectsPrompts, RewritesPrompts, ServedModel, SteersActivations

METHODS = sorted(path.stem for path in (CONF / "serve").glob("*.yaml") if path.stem != "none")
PAGE = Path(__file__).parents[2] / "docs" / "defenses.md"
SHORTENED = {
    "beat": ("candidates=3", "samples=3", "tokens=3", "benign=4"),
    "safetylock": ("pairs=4",),
}
"""Settings of a method's calibration that it runs with here: its defaults read hundreds of prompts."""
ASKED = [Example(f"how do i press the old {name} for the lamp", "") for name in ("quill", "brindle", "velm")]


@cache
def cell_of(name):
    (cell,) = cells_of(compose([f"serve={name}", *(f"serve.calibration.{each}" for each in SHORTENED.get(name, ()))]))
    return cell


@pytest.fixture(scope="module")
def served():
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.4,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = attach(LlamaForCausalLM(shape).requires_grad_(False), Lora(rank=2, targets=("q_proj", "o_proj")), seed=0)
    return ServedModel(model.eval(), tokenizer, cell_of(METHODS[0]).stages["harm_answers"].encoding)


def state_of(model):
    hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())
    return hooks, model.training, {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one[:2] == other[:2] and all(torch.equal(one[2][name], other[2][name]) for name in one[2] | other[2])


def calibrated(stage, served, facts):
    if stage is None:
        return Calibrated({}, {})
    paired = {need.role for need in stage.method.needs if need.paired}
    return stage.method.calibrate(
        served,
        {part.role: part.examples() for part in stage.examples},
        {part.role: part.refusals() for part in stage.examples if part.role in paired},
        seed=5,
        facts=facts,
    )


def test_methods_are_discovered():
    assert {"beat", "safetylock"} <= set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_method_says_what_it_does(name):
    method = cell_of(name).stages["harm_answers"].serve

    assert isinstance(method, RejectsPrompts | SteersActivations | RewritesPrompts)


@pytest.mark.parametrize("name", METHODS)
def test_calibration_and_answers_are_repeated_exactly_and_leave_the_model_as_it_was(name, served):
    stage = cell_of(name).stages["harm_answers"]
    before, facts = state_of(served.model), {}

    runs = []
    for _ in range(2):
        known = calibrated(stage.calibrated, served, facts)
        given = answer(stage.serve, served, known, ASKED, new_tokens=4, decoding=Decoding())
        runs.append((known, given))

    (known, given), (again, repeated) = runs
    assert same(state_of(served.model), before)
    assert given == repeated
    assert known.texts == again.texts
    assert all(torch.equal(known.tensors[each], again.tensors[each]) for each in known.tensors)
    assert len(given.answers.texts) == len(ASKED)
    assert given.verdicts is None or len(given.verdicts) == len(ASKED)
    json.dumps([facts, given.facts])


@pytest.mark.parametrize("name", METHODS)
def test_answer_to_a_prompt_does_not_depend_on_the_others(name, served):
    stage = cell_of(name).stages["harm_answers"]
    known = calibrated(stage.calibrated, served, {})
    together = answer(stage.serve, served, known, ASKED, new_tokens=4, decoding=Decoding())

    for place, each in enumerate(ASKED):
        alone = answer(stage.serve, served, known, [each], new_tokens=4, decoding=Decoding())

        assert alone.answers.texts == [together.answers.texts[place]]
        if together.verdicts is not None:
            assert alone.verdicts[0].score == pytest.approx(together.verdicts[place].score)


@pytest.mark.parametrize("name", METHODS)
def test_header_states_the_fidelity(name):
    module = importlib.import_module(type(cell_of(name).stages["harm_answers"].serve).__module__)

    assert re.search("^Fidelity: ", module.__doc__, flags=re.MULTILINE)


def test_page_of_defenses_lists_every_method_and_no_other():
    (section,) = (part for part in PAGE.read_text().split("\n## ") if part.startswith("serve:"))

    assert sorted(re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)) == METHODS
