"""Defenses from parts: what a choice puts into which slot, what it is called, and what cannot be."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import pytest
from composed import compose

from harness.attacks.mix import Mix
from harness.config.build import Skipped, cells_of, check_cells
from harness.config.defense_slots import label
from harness.errors import ConfigError
from harness.experiment.settings import AttackSettings, Defense
from harness.protocols import DataRequirement

WITHOUT_HARMFUL = "corpus.shared_prompts=false"
"""Leaves the defender without harmful rows, which Booster needs."""


@final
@dataclass(frozen=True, kw_only=True)
class Late:
    """Repairs what it prepared itself, and nothing else."""

    name: ClassVar[str] = "late"
    version: ClassVar[int] = 1

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        return ()

    def repair(self, learner, aligned, batches):
        return {}

    def conflicts(self, slots: Mapping[str, object]) -> list[str]:
        return [] if slots["finetune"] else ["`late` needs what the finetune slot prepares"]


def cell_of(*overrides):
    (cell,) = cells_of(compose(overrides))
    return cell


def held(cell):
    methods = {"align": cell.stages["align"].method, "finetune": cell.stages["finetune"].method}
    return {slot: method.name for slot, method in methods.items() if method}


@pytest.mark.parametrize(
    ("overrides", "methods", "name"),
    [
        (["defense=sft"], {}, "sft"),
        (["defense=lisa"], {"finetune": "lisa"}, "lisa"),
        (["defense=vaccine", "defense/finetune=lisa"], {"align": "vaccine", "finetune": "lisa"}, "vaccine+lisa"),
        (["defense=vaccine_lisa"], {"align": "vaccine", "finetune": "lisa"}, "vaccine+lisa"),
        (["defense=vaccine_lisa", "defense/finetune=kl"], {"align": "vaccine", "finetune": "kl"}, "vaccine+kl"),
        (["defense=vaccine_lisa", "defense/align=sft"], {"finetune": "lisa"}, "lisa"),
        (["defense/align=booster_vaccine"], {"align": "booster_vaccine"}, "booster_vaccine"),
        (["defense=lisa", "defense.finetune=null"], {}, "sft"),
    ],
)
def test_choice_fills_the_slots_and_names_the_row(overrides, methods, name):
    cell = cell_of(*overrides)

    assert held(cell) == methods
    assert cell.labels["defense"] == name


@pytest.mark.slow
def test_defense_from_parts_shares_its_stages_with_the_preset_and_with_its_parts():
    preset, parts = cell_of("defense=vaccine_lisa"), cell_of("defense=vaccine", "defense/finetune=lisa")
    vaccine, lisa = cell_of("defense=vaccine"), cell_of("defense=lisa")

    assert {part: stage.key for part, stage in preset.stages.items()} == {
        part: stage.key for part, stage in parts.stages.items()
    }
    assert parts.stages["align"].key == vaccine.stages["align"].key
    assert len({cell.stages["finetune"].key for cell in (parts, vaccine, lisa)}) == 3


def test_sweep_over_a_slot_is_a_sweep_over_its_options():
    cells = cells_of(compose(["defense=sft,vaccine", "defense/finetune=lisa,sft", "defense.finetune=null,null"]))

    assert [cell.labels["defense"] for cell in cells[::4]] == ["sft", "vaccine"]


def test_value_of_a_slot_is_set_by_its_dotted_name():
    cell = cell_of("defense=vaccine", "defense/finetune=lisa", "defense.finetune.rho=0.25")

    assert cell.stages["finetune"].method.rho == 0.25
    assert cell.swept == {"defense.finetune.rho": 0.25}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["defense=lissa"], ["`defense`", "`lissa`", "did you mean `lisa`", "`vaccine_lisa`", "`booster`"]),
        (["defense/finetune=lissa"], ["`defense/finetune`", "did you mean `lisa`", "`sft` leaves the slot empty"]),
        (["defense/align=lisa"], ["`defense/align`", "`vaccine`"]),
        (["defense=vaccine", "defense/finetune=vaccine"], ["`defense/finetune`: `vaccine` is not", "leaves the slot"]),
        (["defense=panacea", "defense/repair=sft"], ["`defense.repair`, which is empty", "defense/repair=panacea"]),
        (["cluster=slrum"], ["`cluster`: `slrum` is not an option (did you mean `slurm`?)", "`local`"]),
        (["+sweeps=demmo"], ["`sweeps`: `demmo` is not an option (did you mean `demo`?)"]),
        (["defense/finetune=null"], ["`defense/finetune`", "null is not an option"]),
        (["defense=null"], ["null is not an option", "`booster`", "`vaccine_lisa`"]),
        (["attack.ratio=1.5"], ["`attack.ratio`: 1.5", "Set in `conf/attack_ratio/p10.yaml`"]),
        (["store=~/xx"], ["needs quotes: \"store='~/xx'\""]),
        (["defense=lisa", "defense.finetune.rhoo=1"], ["did you mean `rho`", "conf/defense/finetune/lisa.yaml"]),
        (["defense=lisa", "defense.align.rho=1"], ["`defense.align.rho`", "conf/config.yaml"]),
        (["defense=vaccine", "defense.align.rho=-1"], ["`defense.align.rho`", "conf/defense/align/vaccine.yaml"]),
    ],
)
def test_choice_that_stands_for_nothing_is_refused(overrides, said):
    with pytest.raises(ConfigError) as caught:
        cell_of(*overrides)

    assert all(text in str(caught.value) for text in said), str(caught.value)


def test_grid_over_a_methods_settings_may_stand_beside_plain_training():
    sweep = ["defense=sft,booster", "defense.align.lamb=1,5"]

    cells = cells_of(compose(sweep))

    assert [cell.swept for cell in cells if cell.labels["defense"] == "booster"] == [
        {"defense.align.lamb": 1},
        {"defense.align.lamb": 5},
    ]
    plain = [cell for cell in cells if cell.labels["defense"] == "sft"]
    assert len({cell.stages["harm"].key for cell in plain}) == 1
    assert {(tuple(cell.swept), cell.overrides) for cell in plain} == {((), ("defense=sft",))}


def test_grid_over_a_methods_settings_may_stand_beside_methods_without_them():
    sweep = ["defense=sft,vaccine,booster", "defense.align.lamb=1,5", "defense.align.rho=1,2"]

    cells = {(cell.labels["defense"], tuple(cell.swept.items())): cell for cell in cells_of(compose(sweep))}

    lamb, rho = "defense.align.lamb", "defense.align.rho"
    assert cells.keys() == {
        ("sft", ()),
        ("vaccine", ((rho, 1),)),
        ("vaccine", ((rho, 2),)),
        ("booster", ((lamb, 1),)),
        ("booster", ((lamb, 5),)),
    }
    (alone,) = cells_of(compose(["defense=vaccine", f"{rho}=2"]))
    assert cells["vaccine", ((rho, 2),)].keys == alone.keys
    assert cells["vaccine", ((rho, 2),)].overrides == ("defense=vaccine", f"{rho}=2")


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        (["defense=booster,vaccine", "defense.align.lmab=1"], "unknown setting"),
        # The class has it, though its file does not set it: it is not left out silently.
        (["defense=ewc,vlguard", "defense.finetune.lamb=1"], r"`defense.finetune.lamb`: no file sets it"),
    ],
)
def test_setting_that_no_method_or_another_way_has_is_refused(sweep, words):
    with pytest.raises(ConfigError, match=words):
        cells_of(compose(sweep))


def test_setting_of_a_slot_that_is_empty_in_every_cell_is_refused():
    with pytest.raises(ConfigError, match=r"`defense.align.lamb`: unknown setting"):
        cells_of(compose(["defense=sft,lisa", "defense.align.lamb=1,5"]))


@pytest.mark.slow
def test_mapping_for_a_slot_that_is_empty_in_a_cell_names_the_cell_and_what_to_write():
    sweep = ["defense=sft,booster", "defense.align={lamb: 1, alpha: 2}"]

    with pytest.raises(ConfigError) as caught:
        cells_of(compose(sweep))

    (problem,) = caught.value.problems
    assert str(problem).startswith("`defense.align`: the slot is empty in the cell `defense=sft defense.align=")
    assert "`defense/align=NAME`" in str(problem)
    assert "`defense.align.lamb=1 defense.align.alpha=2`" in str(problem)
    as_told = cells_of(compose(["defense=sft,booster", "defense.align.lamb=1", "defense.align.alpha=2"]))
    assert [cell.swept for cell in as_told] == [{}, {"defense.align.lamb": 1, "defense.align.alpha": 2}]


@pytest.mark.slow
def test_preset_that_empties_a_slot_that_is_chosen_for_is_refused(tmp_path):
    (tmp_path / "defense").mkdir()
    (tmp_path / "defense" / "mine.yaml").write_text("finetune: null\n")

    (composition,) = compose(["defense=mine"], str(tmp_path))
    with pytest.raises(ConfigError, match="`defense/finetune`: `lisa` is chosen, but `mine` empties the slot"):
        compose(["defense=mine", "defense/finetune=lisa"], str(tmp_path))

    assert composition.data["defense"]["finetune"] is None


def test_defense_of_an_own_folder_is_an_option_of_its_slot(tmp_path):
    folder = tmp_path / "defense" / "finetune"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("_target_: harness.defenses.kl.KL\nlamb: 3.0\n")

    (cell,) = cells_of(compose(["defense=mine", "defense/align=vaccine"], str(tmp_path)))

    assert cell.stages["finetune"].method.lamb == 3.0
    assert cell.labels["defense"] == "vaccine+mine"


def test_preset_with_a_body_is_called_by_its_own_name():
    choices = {"defense": "mine", "defense/repair": "antidote"}

    assert label(choices, {"align": {}, "finetune": {}, "repair": {}}) == "mine+antidote"


def test_methods_that_do_not_go_together_say_why():
    (alone,) = Defense(repair=Late()).conflicts()

    assert str(alone) == "`defense.repair`: `late` needs what the finetune slot prepares"
    assert Defense(finetune=cell_of("defense=lisa").stages["finetune"].method, repair=Late()).conflicts() == []


def test_impossible_cell_is_refused_with_the_reason():
    with pytest.raises(ConfigError, match=r"`corpus.harmful`: the corpus has no rows for this role"):
        check_cells(compose(["defense=sft,booster", WITHOUT_HARMFUL]))


def test_impossible_cells_of_a_sweep_are_skipped_on_request_each_with_its_reason():
    cells = check_cells(compose(["defense=sft,booster,vaccine", WITHOUT_HARMFUL, "on_invalid=skip"]))

    assert [isinstance(cell, Skipped) for cell in cells] == [False, True, False]
    assert cells[1].overrides[0] == "defense=booster"
    assert "`corpus.harmful`" in cells[1].reasons[0]


@pytest.mark.slow
def test_sweep_of_impossible_cells_alone_is_refused_and_so_is_a_mistake():
    with pytest.raises(ConfigError, match=r"`corpus.harmful`"):
        check_cells(compose(["defense=booster", WITHOUT_HARMFUL, "on_invalid=skip"]))
    with pytest.raises(ConfigError, match=r"`attack.ratio`"):
        check_cells(compose(["attack.ratio=0.1,3", "on_invalid=skip"]))
    with pytest.raises(ConfigError, match=r"`on_invalid`"):
        check_cells(compose(["on_invalid=perhaps"]))


PAIRS = "++corpus.origin={_target_: harness.corpora.safety.LabelledPairs, source: beavertails_train}"
"""A corpus in which no prompt has both answers."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["defense=booster", "align.adapter.dropout=0.1"], ["`defense.align`: `booster`", "dropout 0.1"]),
        (["defense=booster_vaccine", "align.adapter.dropout=0.1"], ["`defense.align`: `booster_vaccine`"]),
        (["defense=panacea", "align.adapter.dropout=0.1"], ["`defense.finetune`: `panacea`", "`finetune.fresh"]),
        (["defense=panacea", "+finetune.fresh={dropout: 0.1}"], ["`defense.finetune`: `panacea`", "dropout 0.1"]),
        (["defense=antidote", "+align.adapter.variant=dora"], ["`defense.repair`: `antidote`", "variant `dora`"]),
        (["defense=antidote", "+finetune.fresh={variant: dora}"], ["`antidote`", "`finetune.fresh.variant=null`"]),
        (["defense=safe_lora", "+align.adapter.variant=dora"], ["`safe_lora`", "variant `dora`"]),
        (
            ["defense=safe_lora", "+align.adapter.variant=dora", "+finetune.fresh={rank: 2}"],
            ["uses the change of the weights by alignment", "`align.adapter.variant=null`"],
        ),
        (
            ["defense=safe_lora", "+finetune.fresh={targets: [q_proj, v_proj]}"],
            ["does not adapt all of them", "q_proj, k_proj, v_proj in the alignment", "`finetune.fresh.targets`"],
        ),
        (["defense=tar", PAIRS], ["`defense.align`: `tar`", "no example of `labelled_pairs` has both"]),
        (["defense=repnoise", PAIRS], ["`defense.align`: `repnoise`", "corpus=beavertails"]),
        (["defense=tar", "corpus.refusal.rows=39", "align.rows=39"], ["10 disjoint batches of 4", "at least 40"]),
    ],
)
def test_method_that_cannot_act_in_its_slot_is_refused_and_skipped_on_request(overrides, said):
    with pytest.raises(ConfigError) as caught:
        cell_of(*overrides)
    both = [text.replace("defense=", "defense=sft,") for text in overrides]
    (plain, skipped) = check_cells(compose([*both, "on_invalid=skip"]))

    assert all(text in str(caught.value) for text in said), str(caught.value)
    assert not isinstance(plain, Skipped)
    assert skipped.reasons == tuple(map(str, caught.value.problems))


@pytest.mark.parametrize(
    "overrides",
    [
        ["defense=vaccine", "align.adapter.dropout=0.1"],
        ["defense=booster", "+finetune.fresh={dropout: 0.1}"],
        ["defense=panacea", "finetune.adapter=single", "+finetune.fresh={dropout: 0.1}"],
        ["defense=antidote", "+align.adapter.variant=dora", "+finetune.fresh={rank: 2}"],
        ["defense=antidote", "align.adapter.targets=all-linear", "+align.adapter.scaling=rslora"],
        ["defense=safe_lora", "+finetune.fresh={targets: all-linear}"],
        ["defense=safe_lora", "+finetune.fresh={targets: [q_proj]}", "finetune.adapter=single"],
        ["defense=repnoise", "defense.align.pairing=random", PAIRS],
        ["defense=tar", "corpus.refusal.rows=40", "align.rows=40"],
    ],
)
def test_method_that_can_act_in_its_slot_is_not_refused(overrides):
    assert cell_of(*overrides)


def test_fresh_adapter_counts_only_where_there_is_one():
    fresh = "+finetune.fresh={rank: 2}"
    plain, given = cell_of("finetune.adapter=single"), cell_of("finetune.adapter=single", fresh)
    double, second = cell_of("finetune.adapter=double"), cell_of("finetune.adapter=double", fresh)

    assert given.stages["finetune"].key == plain.stages["finetune"].key
    assert second.stages["finetune"].key != double.stages["finetune"].key
    assert second.stages["finetune"].adapter.rank == 2


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["align.adapter.", "+finetune.fresh."])
def test_targets_in_another_order_or_twice_are_the_same_adapter(adapter):
    def key(targets):
        return cell_of(f"{adapter}targets={targets}").stages["finetune"].key

    assert key("[v_proj,q_proj,gate_proj]") == key("[q_proj,v_proj,gate_proj]")
    assert key("[v_proj,q_proj,v_proj]") == key("[q_proj,v_proj]")
    assert key("[v_proj,q_proj,wide,far]") == key("[far,wide,v_proj,q_proj]")
    assert len({key("[q_proj,v_proj]"), key("[q_proj]"), key("[q_proj,v_proj,o_proj]"), key("all-linear")}) == 4


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("align.adapter.targets=all_linear", "expected a list or `all-linear`"),
        ("align.adapter.targets=[all-linear]", "`align.adapter.targets`: lists `all-linear`, which is no layer"),
        ("+align.adapter.variant=dorra", "'dorra' is not known (did you mean `dora`?)"),
        ("+align.adapter.scaling=dora", "Expected one of `rslora`"),
    ],
)
def test_adapter_that_does_not_exist_is_refused(override, said):
    with pytest.raises(ConfigError) as caught:
        cell_of(override)

    assert said in str(caught.value)


@pytest.mark.parametrize("dora", ["+align.adapter.variant=dora", "+finetune.fresh={variant: dora}"])
def test_vllm_refuses_dora_before_anything_runs(dora):
    with pytest.raises(ConfigError, match=r"`evaluation.decoding.engine`: vLLM does not support DoRA"):
        cell_of("evaluation.decoding.engine=vllm", dora)

    assert cell_of("evaluation.decoding.engine=vllm", "+align.adapter.scaling=rslora")


def test_ewc_draws_the_rows_that_alignment_trained_on():
    stages = cell_of("defense=ewc", "align.rows=30").stages
    whole = cell_of("defense=ewc").stages

    assert stages["finetune"].refusal == stages["align"].refusal
    assert stages["finetune"].refusal.rows == 30
    assert whole["finetune"].refusal == whole["align"].refusal


@pytest.mark.parametrize(("ratio", "method", "share"), [(0.1, Mix(), 0.1), (0.0, Mix(), 0.0), (0.1, None, 0.0)])
def test_attack_acts_if_it_has_a_method_and_rows(ratio, method, share):
    attack = AttackSettings(ratio=ratio, method=method)

    assert attack.acting == (method if share else None)
    assert attack.acting_ratio == share
