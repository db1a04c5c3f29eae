"""Compositions: values laid over what Hydra composed are what Hydra itself would have made of them."""

from pathlib import Path

import pytest
from composed import compose
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from harness.attacks.virus import mixing
from harness.config.build import cells_of, settings_of
from harness.config.expansion import expand
from harness.config.shipped import CONF
from harness.defenses import lisa
from harness.engine.plan import Plan
from harness.errors import ConfigError

COMMANDS = [
    ["defense=booster", "defense.align.lamb=3", "attack.ratio=0.12", "seed=4"],
    ["defense=booster", "tuned.booster.lamb=7"],
    ["defense=vaccine", "model.source.steps=5", "corpus.evaluation.rows=10", "evaluation.rows=10"],
    ["model.encoding.max_length=32", "align.adapter.targets=[q_proj]", "objective='hs + 2*fa_loss'"],
    ["attack=none", "cluster.threads=1", "store=elsewhere"],
]


def by_hydra(overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(hydra_compose("config", overrides), resolve=True)


@pytest.mark.parametrize("overrides", COMMANDS, ids=" ".join)
def test_values_laid_over_a_composition_are_those_of_hydra(overrides):
    (ours,) = compose(overrides)

    assert ours.data == by_hydra(overrides)
    assert not ours.invalid


def test_published_value_is_used_where_the_size_of_model_has_none_of_its_own():
    (tiny,) = compose(["defense=booster"])
    (published,) = compose(["experiment=booster", "defense=booster"])

    assert tiny.data["defense"]["align"]["lamb"] == tiny.data["tuned"]["booster"]["lamb"]
    assert (published.data["defense"]["align"]["lamb"], published.data["defense"]["align"]["alpha"]) == (5.0, 0.1)


@pytest.mark.slow
def test_sweep_of_300_cells_plans_20_alignments_300_tunings_and_15_mixtures():
    compositions = compose(
        [
            "model=llama2_7b",
            "defense=booster",
            "defense.align.lamb=0.1,1,5,10,50",
            "defense.align.alpha=0.01,0.05,0.1,0.5",
            "attack_ratio=p01,p05,p10,p15,p20",
            "task=sst2,agnews,gsm8k",
        ]
    )

    stages = Plan.of(leaf for cell in cells_of(compositions) for leaf in cell.leaves).stages

    assert len(compositions) == 300
    assert {kind: sum(stage.name == kind for stage in stages) for kind in ("base", "align", "poison", "finetune")} == {
        "base": 1,
        "align": 20,
        "poison": 15,
        "finetune": 300,
    }


def test_five_defenses_that_share_an_alignment_plan_it_once():
    plain, attacked = compose(["defense=sft"]), compose(["defense=sft", "attack=none", "seed=0"])

    cells = cells_of([*plain, *attacked])

    assert cells[0].stages["align"].key == cells[1].stages["align"].key
    assert cells[0].stages["poison"].key != cells[1].stages["poison"].key


def test_resources_store_and_tracker_do_not_enter_a_key():
    plain = compose(["defense=booster"])
    elsewhere = compose(
        ["defense=booster", "store=other", "cluster.workers=3", "cluster.threads=2", "title=mine", "objective=fa"]
    )

    (one,), (other,) = cells_of(plain), cells_of(elsewhere)

    assert {part: stage.key for part, stage in one.stages.items()} == {
        part: stage.key for part, stage in other.stages.items()
    }
    assert settings_of(elsewhere[0]).store == "other"


def test_ratio_zero_is_the_benign_fine_tune_whatever_the_attack():
    (zero,) = cells_of(compose(["attack_ratio=p00"]))
    (none,) = cells_of(compose(["attack=none", "attack_ratio=p20"]))

    assert zero.stages["poison"].key == none.stages["poison"].key
    assert none.labels["ratio"] == 0.0


def test_all_mistakes_of_a_sweep_are_reported_together_each_with_its_path():
    with pytest.raises(ConfigError) as caught:
        cells_of(
            compose(
                [
                    "defense=booster",
                    "defense.align.lambda=3",
                    "defense.align.alpha=-1",
                    "attack.ratio=1.5,2",
                    "align.rows=many",
                    "objective=speed",
                    "sead=1",
                ]
            )
        )

    text = str(caught.value)
    assert "`defense.align.lambda`: unknown setting of `defense.align` (did you mean `lamb`?)" in text
    assert "Set in `conf/defense/align/booster.yaml`." in text
    for path in ("`defense.align.alpha`", "`attack.ratio`: 1.5", "`attack.ratio`: 2.0", "`align.rows`", "`objective`"):
        assert path in text
    assert "`sead`: unknown setting (did you mean `seed`?)" in text


def test_option_that_does_not_exist_names_those_that_do():
    with pytest.raises(ConfigError) as caught:
        compose(["defense=boster"])

    assert "booster" in str(caught.value)


@pytest.mark.slow
def test_copy_of_a_method_that_keeps_its_name_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "my_lab"
    folder.mkdir()
    source = Path(lisa.__file__).read_text()
    (folder / "copied.py").write_text(source)
    (folder / "renamed.py").write_text(source.replace('ClassVar[str] = "lisa"', 'ClassVar[str] = "mine"'))
    monkeypatch.syspath_prepend(tmp_path)
    chosen = ["defense=lisa", "targets=[my_lab.]"]

    (renamed,) = cells_of(compose([*chosen, "defense.finetune._target_=my_lab.renamed.Lisa"]))
    with pytest.raises(ConfigError, match=r"`my_lab.copied.Lisa` has the name `lisa` of `harness.defenses.lisa.Lisa`"):
        cells_of(compose([*chosen, "defense.finetune._target_=my_lab.copied.Lisa"]))

    assert renamed.stages["finetune"].key != cells_of(compose(["defense=lisa"]))[0].stages["finetune"].key


@pytest.mark.slow
def test_two_classes_of_a_lab_with_one_name_are_refused_in_one_sweep(tmp_path, monkeypatch):
    folder = tmp_path / "our_lab"
    folder.mkdir()
    source = Path(lisa.__file__).read_text().replace('ClassVar[str] = "lisa"', 'ClassVar[str] = "mine"')
    for name in ("one", "two"):
        (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    chosen = ["defense=lisa", "targets=[our_lab.]"]

    assert len(cells_of(compose([*chosen, "defense.finetune._target_=our_lab.one.Lisa", "seed=0,1"]))) == 2
    with pytest.raises(ConfigError, match=r"`our_lab.two.Lisa` has the name `mine` of `our_lab.one.Lisa`"):
        cells_of(compose([*chosen, "defense.finetune._target_=our_lab.one.Lisa,our_lab.two.Lisa"]))


@pytest.mark.slow
def test_name_of_a_built_in_class_is_found_in_whatever_module_it_is(tmp_path, monkeypatch):
    (tmp_path / "their_lab.py").write_text(Path(mixing.__file__).read_text())
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(ConfigError, match=r"has the name `mixing` of `harness.attacks.virus.mixing.Mixing`"):
        cells_of(compose(["attack=mixing", "targets=[their_lab.]", "attack.method._target_=their_lab.Mixing"]))


@pytest.mark.parametrize(
    "swept", ["store=a,b", "title=x,y", "cluster=local,slurm", "cluster.workers=1,2", "on_invalid=skip,refuse"]
)
def test_setting_of_the_whole_sweep_with_several_values_is_refused(swept):
    name, _, values = swept.partition("=")
    first, second = values.split(",")

    with pytest.raises(ConfigError) as caught:
        cells_of(compose([swept, "attack_ratio=p00,p10"]))

    told = f"`{name}`: it belongs to the whole sweep; expected one value, found {first}, {second}"
    assert str(caught.value) == told
    assert len(cells_of(compose([f"{name}={first}", "attack_ratio=p00,p10"]))) == 2


def test_class_outside_of_the_allowed_prefixes_is_refused():
    with pytest.raises(ConfigError) as caught:
        cells_of(compose(["judge._target_=os.system"]))

    assert "not allowed" in str(caught.value)


def at(composition, name):
    value = composition.data
    for step in name.split("."):
        value = value[int(step) if isinstance(value, list) else step]
    return value


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["finetune.budget={epochs: 1}"],
            {"finetune.budget.epochs": 1, "finetune.budget.learning_rate": 1.5e-3, "finetune.budget.batch_size": 10},
        ),
        (
            ["finetune={rows: 50, budget: {epochs: 1}}", "finetune.budget.epochs=2"],
            {"finetune.rows": 50, "finetune.budget.epochs": 2, "finetune.budget.learning_rate": 1.5e-3},
        ),
        (
            ["finetune.budget.epochs=2", "finetune.budget={epochs: 1}", "finetune.budget={batch_size: 5}"],
            {"finetune.budget.epochs": 1, "finetune.budget.batch_size": 5},
        ),
        (
            ["model.encoding={max_length: 100}"],
            {"model.encoding.max_length": 100, "model.encoding.template": "plain"},
        ),
        (
            ["corpus=beavertails_pairs", "corpus.refusal={rows: 100}"],
            {"corpus.refusal.rows": 100, "corpus.refusal.keep": "safe", "corpus.refusal.start": 0},
        ),
        (
            ["defense=booster", "defense.align={lamb: 1}"],
            {"defense.align.lamb": 1, "defense.align._target_": "harness.defenses.booster.Booster"},
        ),
        (["align.adapter.targets.0=o_proj"], {"align.adapter.targets": ["o_proj", "k_proj", "v_proj"]}),
        (["align.adapter.targets=[o_proj]"], {"align.adapter.targets": ["o_proj"]}),
        (["title=mine", "tracker=wandb", "tracker.project=${title}"], {"tracker.project": "mine"}),
        (["defense=booster", "defense.align.lamb=${seed}", "seed=4"], {"defense.align.lamb": 4}),
        (["attack_ratio=p20", "title=${hydra:runtime.choices.attack_ratio}"], {"title": "p20"}),
        (["experiment=tvaccine_paper", "tuned.published.of.plain.batch_size=7"], {"finetune.budget.batch_size": 7}),
        (["~attack.method", "~attack.guard"], {"attack": {"ratio": 0.1}}),
    ],
    ids=" ".join,
)
def test_value_of_a_sweep_does_what_it_does_in_a_single_run(overrides, expected):
    (composition,) = compose(overrides)

    assert {name: at(composition, name) for name in expected} == expected
    assert not composition.invalid


def test_swept_value_reaches_what_is_computed_from_it_through_others():
    cells = cells_of(compose(["experiment=tvaccine_paper", "tuned.published.of.plain.batch_size=5,7,9"]))

    assert [cell.stages["finetune"].budget.batch_size for cell in cells] == [5, 7, 9]


def test_interpolation_follows_the_swept_value_that_it_names_and_is_told_as_what_it_became():
    cells = cells_of(compose(["align.rows=100,200", "finetune.rows=${align.rows}"]))

    assert [(cell.stages["align"].refusal.rows, cell.stages["poison"].rows) for cell in cells] == [
        (100, 100),
        (200, 200),
    ]
    assert [cell.swept for cell in cells] == [{"align.rows": n, "finetune.rows": n} for n in (100, 200)]


@pytest.mark.slow
def test_cells_that_share_what_no_value_touches_do_not_see_each_others_values():
    sweep = ["defense=booster,sft", "++mine.a=1,2", "finetune.budget={epochs: 1},{batch_size: 5}", "~corpus.attack"]

    compositions = compose(sweep)

    assert len(compositions) == 8
    assert [composition.data for composition in compositions] == [
        compose(list(composition.overrides))[0].data for composition in compositions
    ]


@pytest.mark.slow
def test_choice_of_all_defenses_is_every_option_that_the_choice_takes():
    offered = {path.stem for path in (CONF / "defense").rglob("*.yaml")}

    cells = cells_of(compose(["defense=glob(*)"]))
    some = compose(["defense=glob([vaccine*,lisa],exclude=vaccine_l*)"])

    assert len(cells) == len(offered) >= 22
    assert [composition.overrides for composition in some] == [
        (f"defense={name}",) for name in ("lisa", "vaccine", "vaccine_antidote", "vaccine_ewc")
    ]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=range(0)", "`seed=range(0)`: the sweep has no values"),
        ("defense.repair=glob(*)", "`defense.repair` matches; it is not a config group"),
        ("task=glob(x*)", "no option of `task` matches; its options are agnews"),
        ("attack.ratio=interval(0,1)", "expected values, as in `attack.ratio=1,2,5`"),
    ],
)
def test_sweep_without_values_is_refused_with_the_reason(override, said):
    with pytest.raises(ConfigError) as caught:
        compose([override])

    assert said in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "align.budget.precision=bfloat16",
        "finetune.budget.optimizer=adamw",
        "finetune.fresh={rank: 2}",
        "judge.openings=['a, b']",
        "corpus.harmful=null",
    ],
)
def test_setting_that_a_class_has_and_no_file_sets_is_refused_with_the_sign_that_adds_it(override):
    with pytest.raises(ConfigError) as caught:
        cells_of(compose([override, "task=sst2", "judge=affirmative"]))

    assert f"no file sets it, so it has to be added with `++`: `++{override}`" in str(caught.value)
    assert cells_of(compose([f"++{override}", "task=sst2", "judge=affirmative"]))


def test_sign_that_adds_a_setting_also_replaces_what_a_chosen_option_sets():
    compositions = compose(["++finetune.budget.optimizer=adamw", "update=mezo"])

    assert [each.data["finetune"]["budget"]["optimizer"] for each in compositions] == ["adamw"]


def test_command_line_takes_the_place_of_what_a_sweep_file_sweeps():
    params = ["defense=sft,lisa", "attack_ratio=p00,p10", "seed=0,1"]

    cells = expand(["attack_ratio=p20", "+seed=3"], lambda group: [], params)

    assert cells == [("defense=sft", "attack_ratio=p20", "+seed=3"), ("defense=lisa", "attack_ratio=p20", "+seed=3")]
