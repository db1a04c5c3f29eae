"""Whether over-refusal is measured: by default where an option has the name of the corpus."""

import pytest
from composed import compose

from harness.config.build import cells_of
from harness.errors import ConfigError

PARTS = {"over_refusal", "over_refusal_answers", "aligned_over_refusal", "aligned_over_refusal_answers"}


def cell_of(*overrides):
    (cell,) = cells_of(compose(list(overrides)))
    return cell


def measured(cell):
    return {part for part in cell.stages if "over_refusal" in part}


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ([], PARTS),
        (["experiment=smollm2"], PARTS),
        (["experiment=booster"], set()),
        (["experiment=smollm2", "over_refusal=xstest"], PARTS),
        (["over_refusal=none"], set()),
    ],
)
def test_over_refusal_follows_the_corpus_unless_it_is_chosen(overrides, parts):
    assert measured(cell_of(*overrides)) == parts


def test_other_stages_have_the_same_keys_with_and_without_over_refusal():
    with_it, without = cell_of(), cell_of("over_refusal=none")

    assert {part: key for part, key in with_it.keys.items() if part not in PARTS} == without.keys


def test_score_depends_on_prompts_and_judge_and_its_generations_on_prompts_only():
    base = cell_of().keys
    fewer = cell_of("over_refusal.prompts.rows=50").keys
    other = cell_of("over_refusal.judge._target_=harness.judges.keywords.Keywords").keys

    assert {part for part in base if fewer[part] != base[part]} == PARTS
    assert {part for part in base if other[part] != base[part]} == {"over_refusal", "aligned_over_refusal"}


def test_option_that_does_not_exist_is_refused_though_the_group_is_optional():
    with pytest.raises(ConfigError, match=r"`over_refusal`: `tinny` is not an option \(did you mean `tiny`\?\)"):
        cell_of("over_refusal=tinny")
    with pytest.raises(ConfigError, match="`beavertails` is not an option; expected one of `advbench`, `none`, `tiny`"):
        cell_of("experiment=booster", "over_refusal=beavertails")


def test_option_of_ones_own_folder_with_the_name_of_a_corpus_is_measured_by_default(tmp_path):
    (tmp_path / "over_refusal").mkdir()
    (tmp_path / "over_refusal" / "beavertails.yaml").write_text("defaults: [xstest]\n")

    (cell,) = cells_of(compose(["experiment=booster"], str(tmp_path)))

    assert measured(cell) == PARTS


def test_judge_of_harm_that_cannot_judge_refusals_is_refused():
    with pytest.raises(ConfigError, match=r"Affirmative` is not a `RefusalJudge`: it lacks `grade_refusals`"):
        cell_of("over_refusal.judge._target_=harness.judges.affirmative.Affirmative")


def test_protocol_has_the_prompts_and_the_judge_of_over_refusal():
    protocol = cell_of().protocol

    assert protocol["over_refusal.prompts.name"] == "allowed_requests"
    assert protocol["over_refusal.judge.name"] == "tiny"
    assert not any(name.startswith("over_refusal") for name in cell_of("over_refusal=none").protocol)


def test_objective_with_over_refusal_is_that_of_the_row_without_a_probe(run, tmp_path):
    # A backdoor adds a row with its trigger, for which over-refusal is not measured.
    store, objective = f"store={tmp_path / 'store'}", "objective='hs + 1*over_refusal'"

    code, printed, _ = run("plan", "attack=backdoor", objective, store)
    unmeasured, _, error = run("plan", "attack=backdoor", "over_refusal=none", objective, store)

    assert (code, unmeasured) == (0, 2)
    assert "2 cells" in printed
    assert "`objective`: it needs over-refusal" in error
