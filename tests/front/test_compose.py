"""Compositions: values laid over what Hydra composed are what Hydra itself would have made of them."""

from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from harness.compose import CONF, compose
from harness.config import cells_of, settings_of
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
    assert not ours.misfits


def test_published_value_is_used_where_the_size_of_model_has_none_of_its_own():
    (tiny,) = compose(["defense=booster"])
    (published,) = compose(["experiment=booster", "defense=booster"])

    assert tiny.data["defense"]["align"]["lamb"] == tiny.data["tuned"]["booster"]["lamb"]
    assert (published.data["defense"]["align"]["lamb"], published.data["defense"]["align"]["alpha"]) == (5.0, 0.1)


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


def test_copy_of_a_method_that_keeps_its_name_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "my_lab"
    folder.mkdir()
    source = Path(lisa.__file__).read_text()
    (folder / "copied.py").write_text(source)
    (folder / "renamed.py").write_text(source.replace('ClassVar[str] = "lisa"', 'ClassVar[str] = "mine"'))
    monkeypatch.syspath_prepend(tmp_path)
    chosen = ["defense=lisa", "targets=[my_lab.]"]

    (renamed,) = cells_of(compose([*chosen, "defense.finetune._target_=my_lab.renamed.Lisa"]))
    with pytest.raises(ConfigError, match=r"`my_lab.copied.Lisa` calls itself `lisa`, as `harness.defenses.lisa` does"):
        cells_of(compose([*chosen, "defense.finetune._target_=my_lab.copied.Lisa"]))

    assert renamed.stages["finetune"].key != cells_of(compose(["defense=lisa"]))[0].stages["finetune"].key


def test_class_outside_of_the_allowed_prefixes_is_refused():
    with pytest.raises(ConfigError) as caught:
        cells_of(compose(["judge._target_=os.system"]))

    assert "not allowed" in str(caught.value)
