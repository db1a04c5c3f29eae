"""The ensemble as a choice: no key without one, a cell of cells with one, and members that do not fit are refused."""

import pytest
from composed import compose

from harness.config.build import cells_of, check_cells
from harness.engine.plan import Plan
from harness.engine.store import Store
from harness.errors import ConfigError
from harness.stages.ensemble import Ensemble

TWO = ("ensemble=topla", "ensemble.members=[sft,booster]")


def cell_of(*overrides):
    (cell,) = cells_of(compose(list(overrides)))
    return cell


def test_cell_without_an_ensemble_is_the_one_that_it_was_before_there_was_any():
    chosen, silent = cell_of("ensemble=none"), cell_of()

    assert chosen.identity == silent.identity
    assert chosen.rows == (chosen,)


def test_ensemble_is_made_of_the_cells_that_a_sweep_over_its_members_has():
    cell = cell_of(*TWO, "attack_ratio=p20", "seed=3")
    alone = [cell_of(f"defense={name}", "attack_ratio=p20", "seed=3") for name in ("sft", "booster")]

    assert [member.identity for member in cell.members] == [each.identity for each in alone]
    assert cell.rows == (*cell.members, cell)
    assert cell.labels == {**alone[0].labels, "defense": "topla(sft+booster)"}
    for part, answers in (("harm", "harm_answers"), ("accuracy", "task_answers"), ("over_refusal",) * 2):
        chosen = cell.stages[answers if part != "over_refusal" else "over_refusal_answers"]
        assert isinstance(chosen, Ensemble)
        assert {grade.key for grade in chosen.members} == {each.keys[part] for each in alone}
        assert cell.stages[part].answers is chosen
        assert cell.stages[part].judge == alone[0].stages[part].judge
    assert cell.keys["booster.finetune"] == alone[1].keys["finetune"]
    # The aligned models' answers are no part of it.
    assert not any("aligned" in part for part in cell.stages)
    assert set(cell.leaves) == {cell.stages[part] for part in ("harm", "accuracy", "over_refusal")}


def test_order_of_the_members_is_no_part_of_the_key():
    first, second = cell_of(*TWO), cell_of("ensemble=topla", "ensemble.members=[booster,sft]")

    assert first.keys["harm"] == second.keys["harm"]


def test_setting_of_the_method_is_an_axis_and_changes_no_key_of_a_member():
    plain, other = cell_of(*TWO), cell_of(*TWO, "ensemble.method.diversity_weight=1.0")

    assert other.swept == {"ensemble.method.diversity_weight": 1.0}
    assert other.keys["harm"] != plain.keys["harm"]
    assert other.keys["booster.harm"] == plain.keys["booster.harm"]


def test_sweep_may_combine_ensembles_with_cells_that_have_none():
    cells = cells_of(compose(["ensemble=none,topla", "ensemble.members=[sft,booster]", "defense.align.lamb=2"]))

    assert [cell.labels["defense"] for cell in cells] == ["sft", "topla(sft+booster)"]
    assert cells[1].stages["booster.align"].method.lamb == 2
    assert cells[0].swept == {}


def test_method_that_reads_likelihoods_has_a_score_of_each_members_final_model():
    cell = cell_of("ensemble=topla_soft_vote", "ensemble.members=[sft,antidote]")
    chosen = cell.stages["task_answers"]

    assert [score.model.key for score in chosen.scored] == [grade.answers.model.key for grade in chosen.members]
    assert cell.stages["antidote.score"].model is cell.stages["antidote.repair"]
    assert cell.stages["sft.score"].labels == ("cheerful", "gloomy")
    assert cell.stages["harm_answers"].scored is None
    # A method that does not read them has other keys, but the same members.
    assert "sft.score" not in cell_of("ensemble=topla", "ensemble.members=[sft,antidote]").stages


def test_members_of_other_seeds_are_no_rows_of_the_sweep():
    cell = cell_of("ensemble=topla", "ensemble.members=[booster]", "ensemble.seed_offsets=[0,100]", "seed=1")

    assert cell.labels["defense"] == "topla(booster*2)"
    assert [member.labels["seed"] for member in cell.members] == [1]
    assert {part.partition(".")[0] for part in cell.stages if "." in part} == {"booster@1", "booster@101"}
    assert cell.keys["booster@101.finetune"] == cell_of("defense=booster", "seed=101").keys["finetune"]


def test_job_rebuilds_the_stage_from_its_stored_spec(tmp_path):
    cell, store = cell_of(*TWO), Store(tmp_path / "store")
    store.register(Plan.of(cell.leaves).stages)

    rebuilt = store.stage(cell.keys["harm_answers"])

    assert rebuilt == cell.stages["harm_answers"]
    assert rebuilt.members == cell.stages["harm_answers"].members
    assert rebuilt.voter == cell.stages["harm_answers"].voter


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ensemble.members=[sft]"], r"`ensemble\.members`: 1 is no ensemble; expected two defenses or more"),
        (["ensemble.members=[sft,sft]"], r"`ensemble\.members`: `sft` is listed twice"),
        (["ensemble.members=[sft,bosster]"], r"`ensemble\.members`: `bosster`: `defense`: `bosster` is not an option"),
        (["ensemble.members=sft"], r"`ensemble\.members`: 'sft' is a text; expected a list"),
        (["ensemble.folds=1"], r"`ensemble\.folds`: 1 is too small; expected 2 or more"),
        (["ensemble.fold=3"], r"`ensemble\.fold`: unknown setting.*did you mean `folds`"),
        (["ensemble.method.max_members=7"], r"`ensemble\.method\.max_members`: 7 of 6 members"),
        (["ensemble.seed_offsets=[-1]"], r"`ensemble\.seed_offsets`: \[-1\] cannot be added to the seed"),
        (["judge=keywords"], r"`ensemble\.voter`: `keywords` would vote on the answers that `judge` grades"),
        (["defense=booster"], r"`defense`: the defenses of an ensemble are its members"),
        (["defense/align=booster"], r"`defense/align`: the defenses of an ensemble are its members"),
        (["task=lm_eval", "task.tasks=[arc_easy]"], "`task`: `lm_eval` has no votes"),
        (["ensemble=maybe"], "maybe"),
        (
            ["task=gsm8k", "ensemble=topla_learned"],
            r"`ensemble\.method\.combine`: `gsm8k` has open answers, and their classes have no likelihoods",
        ),
    ],
)
def test_mistake_is_explained_with_its_path(overrides, message):
    with pytest.raises(ConfigError, match=message):
        cell_of("ensemble=topla", *overrides)


def test_members_that_are_the_same_model_are_refused(tmp_path):
    (tmp_path / "defense").mkdir()
    (tmp_path / "defense" / "again.yaml").write_text("# plain training by another name\nalign: null\n")

    with pytest.raises(ConfigError, match="`again` and `sft` are the same model"):
        cells_of(compose(["ensemble=topla", "ensemble.members=[sft,again]"], str(tmp_path)))


def test_invalid_ensemble_can_be_skipped_like_any_cell():
    sweep = compose(["ensemble=topla", "ensemble.members=[sft,booster]", "judge=tiny,keywords"])

    cell, skipped = check_cells(sweep, "skip")

    assert cell.labels["defense"] == "topla(sft+booster)"
    assert "would vote on the answers" in skipped.reasons[0]


def test_members_in_the_body_of_a_file_are_members_and_no_ensembles_themselves(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [tiny, override /ensemble: topla]\nensemble: {members: [sft, booster]}\n"
    )

    (cell,) = cells_of(compose(["experiment=mine"], str(tmp_path)))

    assert [member.labels["defense"] for member in cell.members] == ["sft", "booster"]
