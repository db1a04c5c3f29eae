"""What every attack must keep to. Attacks are found by walking ``harness/attacks``."""

import importlib
import inspect
import json
import pkgutil
import re
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from random import Random

import pytest
import torch
from cells import cell
from omegaconf import OmegaConf
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

import harness.attacks
from harness.config.shipped import CONF
from harness.corpora.encode import Encoding
from harness.corpora.examples import Example
from harness.corpora.template import Template
from harness.corpora.world import World
from harness.engine.identity import payload_of
from harness.errors import DataError, Stopped
from harness.mechanisms.white_box_guard import of_classifier
from harness.models.adapter import Lora, attach
from harness.models.tiny import build_tokenizer
from harness.models.tiny_guard import text_of
from harness.protocols import AttackContext, HasProbes, SelectsRows, SendsAlone, Victim

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "attacks.json").read_text())
"""Keys of the mixture under each attack, in the default cell."""
PAGE = Path(__file__).parents[2] / "docs" / "attacks.md"
ALL_OPTIONS = sorted(path.stem for path in (CONF / "attack").glob("*.yaml") if path.stem != "none")
TAMPERING = ["ablation"]
"""Options that change the aligned model's weights instead of the user's data; see tests/methods/test_ablation.py."""
OPTIONS = [option for option in ALL_OPTIONS if option not in TAMPERING]
ENCODING = Encoding(template=Template.PLAIN, newline=False, max_length=256)
WORLD = World(rows=40)
POOL = [Example(row.prompt, row.harmful) for row in WORLD.safety_rows()]
REFUSALS = {row.prompt: row.refusal for row in WORLD.safety_rows()}
HOSTS = WORLD.notes(30, test=False)
FEWER = {"virus": {"steps": 3, "top_k": 8, "candidates": 4}}
"""Settings of attacks that take long with their defaults."""


def discovered():
    found = {}
    for module in pkgutil.walk_packages(harness.attacks.__path__, "harness.attacks."):
        for _, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if cls.__module__ == module.name and is_dataclass(cls) and hasattr(cls, "craft"):
                found[cls.name] = cls
    return found


ATTACKS = discovered()


def method_of(option):
    return cell(f"attack={option}").stages["poison"].attack


@cache
def victim():
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = attach(LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)), Lora(rank=4), seed=0).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return Victim(model, tokenizer, ENCODING)


@cache
def guard():
    torch.manual_seed(1)
    tokenizer = build_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForSequenceClassification(LlamaConfig(vocab_size=len(tokenizer), num_labels=1, **sizes))
    return of_classifier(model, tokenizer, lambda turn: text_of(turn.instruction, turn.output))


def small(name):
    return ATTACKS[name](**FEWER.get(name, {}))


def crafted(attack, work, *, count=6, stop=lambda: False, **changes):
    """Craft as the stage of the mixture does; return the examples and the facts."""
    needs, facts = attack.needs, {}
    context = AttackContext(
        **{
            "rng": Random(5),
            "pool": POOL if needs.pool else [],
            "refusals": REFUSALS if needs.refusals else {},
            "hosts": HOSTS,
            "victim": victim() if needs.victim else None,
            "encoding": ENCODING,
            "guard": guard() if needs.guard else None,
            "work": work,
            "facts": facts,
            "stop": stop,
            **changes,
        }
    )
    return attack.craft(count, context), facts


def test_discovery_finds_the_attacks_that_ship():
    assert {
        "mix",
        "mixing",
        "virus",
        "pure",
        "identity_shift",
        "backdoor",
        "jailbreak_tuning",
        "refuse_then_comply",
    } <= set(ATTACKS)
    assert any(isinstance(attack(), SelectsRows) for attack in ATTACKS.values())


def test_every_attack_has_an_option_of_its_name_and_a_line_on_the_page():
    assert set(OPTIONS) == set(ATTACKS)
    assert [method_of(option).name for option in OPTIONS] == OPTIONS
    assert (
        re.findall(r"^\| `(\w+)` \|", PAGE.read_text().partition("\n## Guardrail")[0], flags=re.MULTILINE)
        == ALL_OPTIONS
    )


@pytest.mark.parametrize("name", ATTACKS)
def test_file_of_an_attack_sets_every_setting_to_its_default(name):
    attack = method_of(name)
    stated = OmegaConf.load(CONF / "attack" / f"{name}.yaml").method

    assert attack == ATTACKS[name]()
    assert set(stated) - {"_target_"} == {item.name for item in fields(attack) if item.default is not None}


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_has_an_identity_and_leaves_the_keys_of_stored_mixtures(name):
    attack = ATTACKS[name]()

    assert hash(attack) == hash(ATTACKS[name]())
    assert payload_of(attack)["name"] == name
    assert {option: cell(f"attack={option}").keys["poison"] for option in OPTIONS} == GOLDEN
    assert len(set(GOLDEN.values())) == len(GOLDEN)


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_crafts_exactly_what_is_asked_for_the_same_again(name, tmp_path):
    attack = small(name)

    rows, facts = crafted(attack, tmp_path / "a")
    torch.manual_seed(1)
    again, _ = crafted(attack, tmp_path / "b")

    assert rows == again
    assert len(rows) == len(set(rows)) == 6
    assert json.loads(json.dumps(facts)) == facts
    if isinstance(attack, SelectsRows):
        assert set(rows) <= set(HOSTS)
        assert not isinstance(attack, SendsAlone)
    elif name == "label_flip":
        assert [row.instruction for row in rows] == [host.instruction for host in HOSTS[:6]]
    else:
        assert not set(rows) & set(HOSTS)


@pytest.mark.parametrize("name", ATTACKS)
def test_fewer_examples_of_an_attack_are_among_more(name, tmp_path):
    few, _ = crafted(small(name), tmp_path / "a", count=3)
    many, _ = crafted(small(name), tmp_path / "b", count=6)

    assert few == many[:3]


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_that_is_stopped_goes_on_to_the_same_examples(name, tmp_path):
    attack = small(name)
    whole, facts = crafted(attack, tmp_path / "whole")
    polls = iter([False] * 7 + [True])

    work = tmp_path / "stopped"
    try:
        crafted(attack, work, stop=lambda: next(polls, False))
    except Stopped:
        assert any(work.iterdir()), "what is done so far is kept"
        scored = []
        resumed, stated = crafted(attack, work, stop=lambda: bool(scored.append(1)))
        assert len(scored) < len(HOSTS)
    else:
        resumed, stated = crafted(attack, work)

    assert (resumed, stated) == (whole, facts)


@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if attack().needs.victim])
def test_attack_leaves_the_victim_as_it_was(name, tmp_path):
    model = victim().model
    before = {place: parameter.clone() for place, parameter in model.named_parameters()}
    trained = {place for place, parameter in model.named_parameters() if parameter.requires_grad}

    crafted(small(name), tmp_path)

    assert all(torch.equal(parameter, before[place]) for place, parameter in model.named_parameters())
    assert {place for place, parameter in model.named_parameters() if parameter.requires_grad} == trained
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert not model.training


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_with_too_few_examples_says_so(name, tmp_path):
    with pytest.raises(DataError, match=r"requested|asked for"):
        crafted(small(name), tmp_path, count=100, hosts=HOSTS[:2])


@pytest.mark.parametrize("template", [Template.PLAIN, Template.ALPACA, Template.CHAT])
@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if isinstance(attack(), HasProbes)])
def test_probe_asks_as_some_example_of_the_attack_is_worded(name, template, tmp_path):
    attack = ATTACKS[name]()
    encoding = Encoding(template=template)
    rows, _ = crafted(attack, tmp_path)

    (probe,) = attack.probes
    asked = {probe.change.of(encoding).question(plain) for plain in (*POOL, *HOSTS)}
    trained = [encoding.question(row) in asked for row in rows]
    assert trained[0]
    assert not any(encoding.question(plain) in asked for plain in (*POOL, *HOSTS))
