"""Every file under conf/ and sweeps/ composes, builds and plans."""

import json
import re
from importlib import import_module
from pathlib import Path

import pytest
from cells import cell as cell_of
from cells import composition as composition_of
from omegaconf import OmegaConf
from published import SWEEPS as PUBLISHED

from harness.config.shipped import CONF
from harness.corpora.template import Template
from harness.engine.plan import Plan
from harness.engine.spec import describe, rebuild

ROOT = Path(__file__).parents[2]
NEEDS = {
    ("model", "hub"): ("model.source.repo=owner/name", f"model.source.revision={'0' * 40}"),
    ("judge", "openai"): ("judge.model=name",),
    ("task", "lm_eval"): ("task.tasks=[arc_easy]",),
    ("corpus", "direct_refusal"): ("thoughts=s1",),
    ("corpus", "safechain"): ("thoughts=s1",),
    ("corpus", "tiny_harmless_thoughts"): ("thoughts=tiny",),
    ("corpus", "tiny_long_thoughts"): ("thoughts=tiny",),
    ("corpus", "tiny_short_thoughts"): ("thoughts=tiny",),
}
"""Options that are incomplete alone; `model=local` needs a folder with a model and is tested in tests/models."""
OPTIONS = sorted(
    (str(path.parent.relative_to(CONF)), path.stem)
    for path in CONF.rglob("*.yaml")
    if path.parent != CONF and path.parent.name != "sweeps" and path != CONF / "model" / "local.yaml"
)
SWEEPS = sorted({path.stem for path in (ROOT / "sweeps").glob("*.yaml")} - set(PUBLISHED))
SLOTTED = [group for group, _ in OPTIONS if group.startswith("defense/")]
DEFENSES = sorted({option for group, option in OPTIONS if group == "defense" or group in SLOTTED})


def test_files_are_discovered():
    assert {"sft", "vaccine", "booster", "booster_vaccine"} <= set(DEFENSES)
    assert {"demo", "tiny_lambda_alpha", "tiny_rho"} <= set(SWEEPS)


def _experiment_with(group, option):
    """The preset that an option belongs to: 5,000 refusals are not to be had in a corpus of 1,000."""
    for preset in sorted((CONF / "experiment").glob("*.yaml")):
        if f"override /{group}: {option}\n" in preset.read_text():
            return (f"experiment={preset.stem}",)
    return ()


def _line(group, option):
    # A method in two slots need not be complete in one.
    whole = (f"defense={option}",) if group in SLOTTED else ()
    if group == "federation/aggregate":
        whole = ("federation=tiny",)
    return (*_experiment_with(group, option), *whole, f"{group}={option}", *NEEDS.get((group, option), ()))


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_option_of_a_group_composes_and_plans(group, option):
    cell = cell_of(*_line(group, option))

    known = {stage.key: stage for stage in Plan.of(cell.leaves).stages}
    # A cell that ends after alignment has a model, its alignment, and two rounds of answers with their grades.
    assert len(known) >= 6 + 2 * ("finetune" in cell.stages)
    assert composition_of(*_line(group, option)).choices[group] == option
    for stage in known.values():
        # As it is written into a store, without a word about modules.
        spec = json.dumps(describe(stage))
        assert "harness." not in spec
        assert rebuild(json.loads(spec), known.__getitem__).key == stage.key


@pytest.mark.parametrize(
    "name", ["llama3.1_8b_instruct", "qwen2.5_7b_instruct", "gemma2_9b_it", "mistral_7b_instruct", "smollm2_chat"]
)
def test_instruct_model_is_trained_and_asked_by_its_own_chat_template(name):
    stages = cell_of(*_line("model", name)).stages

    assert {stages[part].encoding.template for part in ("align", "finetune", "harm_answers")} == {Template.CHAT}


def test_smollm2_shares_its_base_between_its_templates():
    asked, chat = (cell_of(*_line("model", name)) for name in ("smollm2", "smollm2_chat"))

    assert asked.keys["base"] == chat.keys["base"]
    assert asked.keys["align"] != chat.keys["align"]


@pytest.mark.parametrize("sweep", SWEEPS)
def test_sweep_file_names_known_settings(sweep):
    data = OmegaConf.load(ROOT / "sweeps" / f"{sweep}.yaml")
    params = data.hydra.sweeper.params

    assert params
    assert cell_of(f"+sweeps={sweep}").stages


@pytest.mark.parametrize("defense", DEFENSES)
def test_defense_takes_every_slot_that_has_its_name(defense):
    named = {group.removeprefix("defense/") for group, option in OPTIONS if group in SLOTTED and option == defense}

    composition = composition_of(f"defense={defense}")

    assert {slot for slot in named if composition.data["defense"][slot] is None} == set()


@pytest.mark.parametrize("defense", DEFENSES)
def test_defense_acts_in_at_least_one_slot_or_is_the_baseline(defense):
    cell = cell_of(f"defense={defense}")
    methods = [cell.stages["align"].method, cell.stages["finetune"].method, cell.stages.get("repair")]

    # Some are questions alone, under which a plainly trained model is evaluated.
    assert any(methods) or cell.probes or defense == "sft"


def test_page_of_defenses_lists_every_option_in_its_slot_and_no_other():
    sections = (ROOT / "docs" / "defenses.md").read_text().split("\n## ")
    listed = {
        f"defense/{section.partition(':')[0]}": re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)
        for section in sections
    }

    for group in sorted(set(SLOTTED)):
        assert sorted(listed[group]) == sorted(option for slot, option in OPTIONS if slot == group)


@pytest.mark.parametrize(("group", "option"), [each for each in OPTIONS if each[0] in SLOTTED])
def test_header_of_a_method_states_its_fidelity(group, option):
    target = OmegaConf.load(CONF / group / f"{option}.yaml")["_target_"]
    package, _, name = target.rpartition(".")
    module = import_module(getattr(import_module(package), name).__module__)

    assert re.search("^Fidelity: ", module.__doc__, flags=re.MULTILINE)
