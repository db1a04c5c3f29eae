"""Cells that end after alignment: which stages they have, that they are a row, and what does not go with them."""

import pytest
from composed import compose

from harness.config.build import cells_of, check_cells, settings_of
from harness.errors import ConfigError

STAGES = {
    "base", "align", "harm_answers", "harm", "task_answers", "accuracy", "over_refusal_answers", "over_refusal"
}  # fmt: skip

REFUSED = {
    "finetune=none attack=mix": r"`attack\.method`: `mix` belongs to a fine-tuning, but the cell ends after the align",
    "finetune=none attack=ablation": r"`tamper`: `ablation` belongs to a fine-tuning, but the cell ends",
    "finetune=none defense=antidote": r"`defense\.repair`: `antidote` belongs to a fine-tuning",
    "finetune=none defense/finetune=sppft": r"`defense\.finetune`: `sppft` belongs to a fine-tuning",
    "finetune=none guardrail=tiny": r"`guardrail`: `tiny_guard` belongs to a fine-tuning",
    "finetune=none federation=tiny": r"`federation`: `federation` belongs to a fine-tuning",
    "finetune=none leakage=matching": r"`leakage`: `\w+` belongs to a fine-tuning",
    "finetune=none update=mezo": r"`update`: `mezo` belongs to a fine-tuning",
    # Computed from the settings of the fine-tuning, so nothing of it can be resolved.
    "finetune=none defense=lisa": r"`finetune`: `none` ends the cell .* defense that acts in or after one",
    "finetune=none finetune.budget.epochs=3": r"`finetune\.budget\.epochs`: sets a fine-tuning, but the cell ends",
}


def cell_of(line=""):
    (cell,) = cells_of(compose(line.split()))
    return cell


def test_cell_ends_with_the_grades_of_the_aligned_model_which_other_cells_share():
    ended, tuned = cell_of("finetune=none"), cell_of()

    assert set(ended.stages) == STAGES
    assert ended.stages["harm_answers"].model is ended.stages["align"]
    for part in STAGES - {"base", "align"}:
        assert ended.keys[part] == tuned.keys[f"aligned_{part}"]
    assert {part: ended.keys[part] for part in ("base", "align")} == {
        part: tuned.keys[part] for part in ("base", "align")
    }


def test_cell_is_a_row_of_its_own_without_an_attack():
    cell = cell_of("finetune=none defense=booster")

    assert (cell.labels["attack"], cell.labels["ratio"], cell.labels["defense"]) == ("none", 0.0, "booster")
    assert cell.swept["finetune"] == "none"
    assert "finetune" not in cell_of().swept


def test_experiment_that_sets_a_fine_tuning_can_be_ended_after_its_alignment():
    cell = cell_of("experiment=booster_paper finetune=none defense=booster")

    assert "finetune" not in cell.stages
    assert cell.keys["align"] == cell_of("experiment=booster_paper defense=booster").keys["align"]


def test_alignment_that_trains_nothing_leaves_the_base_model_to_be_measured():
    cell = cell_of("finetune=none align.adapter=none")

    assert cell.stages["align"].adapter.nothing


@pytest.mark.parametrize("line", REFUSED)
def test_what_belongs_to_a_fine_tuning_is_refused(line):
    with pytest.raises(ConfigError, match=REFUSED[line]):
        cell_of(line)


def test_setting_of_the_fine_tuning_may_be_swept_together_with_cells_that_have_none():
    composed = compose(["finetune=none,tiny", "finetune.budget.epochs=3", "attack=none"])

    ended, tuned = cells_of(composed)

    assert settings_of(composed[0]).on_invalid == "refuse"
    assert "finetune.budget.epochs" not in ended.swept
    assert (tuned.swept["finetune.budget.epochs"], tuned.stages["finetune"].budget.epochs) == (3, 3)


def test_sweep_skips_cells_whose_defense_needs_a_fine_tuning():
    checked = check_cells(compose(["finetune=none", "defense=sft,sppft,booster", "on_invalid=skip"]))

    assert [hasattr(each, "reasons") for each in checked] == [False, True, False]


def test_safety_tax_is_an_alignment_with_thoughts_of_all_weights_and_its_rows_before_and_after():
    after, before = cell_of("experiment=safety_tax"), cell_of("experiment=safety_tax align.adapter=none")

    align, asked = after.stages["align"], after.stages["harm_answers"]
    assert set(after.stages) == STAGES - {"over_refusal_answers", "over_refusal"}
    assert (align.adapter.modules, align.budget.epochs, align.budget.batch_size, align.budget.warmup_ratio) == (
        "all", 5, 8, 0.0
    )  # fmt: skip
    assert (align.refusal.start, align.refusal.rows, align.refusal.origin.name) == (0, 1000, "direct_refusal")
    assert (asked.decoding.thought.tokens, asked.new_tokens, asked.prompts.rows) == (5000, 5000, 1000)
    assert after.stages["accuracy"].thoughts == align.encoding.thoughts
    assert before.swept["align.adapter"] == "none"


def test_markers_of_the_evaluation_may_begin_every_thought_with_a_word():
    line = "evaluation.encoding.thoughts={think: '<think> tally', answer: '<answer>', final: ''}"
    (forced,) = cells_of(compose(["experiment=tiny_safety_tax", line]))
    plain = cell_of("experiment=tiny_safety_tax")

    assert forced.keys["align"] == plain.keys["align"]
    assert forced.stages["task_answers"].encoding.thoughts.opening == "<think> tally\n"
    assert plain.stages["task_answers"].encoding.thoughts.opening == "<think>\n"
