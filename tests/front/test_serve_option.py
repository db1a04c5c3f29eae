"""The method at inference as a choice: no key without one, an axis with one, and what it cannot do is refused."""

import pytest
from composed import compose

from harness.config.build import cells_of, check_cells
from harness.config.expansion import deferred
from harness.config.shipped import CONF
from harness.engine.plan import Plan
from harness.engine.store import Store
from harness.errors import ConfigError
from harness.sweep.record import describe_stage

METHODS = sorted(path.stem for path in (CONF / "serve").glob("*.yaml") if path.stem != "none")
ANSWERS = ("harm_answers", "task_answers", "over_refusal_answers")
GRADES = ("harm", "accuracy", "over_refusal")


def cell_of(*overrides):
    (cell,) = cells_of(compose(list(overrides)))
    return cell


def test_cell_without_a_method_is_the_one_that_it_was_before_there_was_any():
    chosen, silent = cell_of("serve=none"), cell_of()

    assert chosen.identity == silent.identity
    assert "serve" not in silent.swept
    assert "calibrate" not in silent.stages


@pytest.mark.parametrize("name", METHODS)
def test_method_changes_what_is_answered_and_no_model(name):
    plain, served = cell_of().keys, cell_of(f"serve={name}")

    assert served.swept == {"serve": name}
    assert served.keys.keys() - plain.keys() <= {"calibrate"}
    changed = {part for part, key in plain.items() if served.keys[part] != key}
    assert changed == {*ANSWERS, *GRADES}
    assert all(served.stages[part].serve.name == name for part in ANSWERS)


def test_probes_are_asked_of_the_served_model_and_heads_are_read_once_for_all_tasks_and_attacks():
    beat, lock = cell_of("serve=beat"), cell_of("serve=safetylock")
    other = ("attack_ratio=p20", "task.test_rows=10")

    assert beat.stages["calibrate"].model is beat.stages["finetune"]
    assert lock.stages["calibrate"].model is lock.stages["align"]
    assert cell_of("serve=safetylock", *other).keys["calibrate"] == lock.keys["calibrate"]
    assert cell_of("serve=beat", *other).keys["calibrate"] != beat.keys["calibrate"]


def test_settings_that_are_read_while_answering_share_the_calibration():
    weak, strong = cell_of("serve=safetylock", "serve.strength=1"), cell_of("serve=safetylock", "serve.strength=9")

    assert weak.keys["calibrate"] == strong.keys["calibrate"]
    assert weak.keys["harm_answers"] != strong.keys["harm_answers"]
    assert strong.swept == {"serve": "safetylock", "serve.strength": 9}


def test_sweep_may_combine_settings_of_a_method_with_cells_that_have_none():
    cells = cells_of(compose(["serve=none,safetylock", "serve.strength=1,9"]))

    assert [cell.swept.get("serve.strength") for cell in cells] == [None, None, 1, 9]
    assert cells[0].identity == cells[1].identity


def test_value_of_a_swept_group_is_left_to_the_cells_and_means_the_same_there():
    line = ["serve=none,safetylock", "serve.strength=9", "serve.calibration={pairs: 8}", "~serve.heads", "align.rows=5"]

    left = deferred(line)

    assert left[:3] == ["serve=none,safetylock", "serve.strength=choice(9)", "serve.calibration=choice({pairs: 8})"]
    assert left[3:] == line[3:]
    assert deferred(["serve=safetylock", "serve.strength=9"]) == ["serve=safetylock", "serve.strength=9"]
    once, whole = ([cell.identity for cell in cells_of(compose(each))] for each in (left[:2], line[:2]))
    assert once == whole


def test_method_acts_on_the_model_that_is_the_last_one():
    repaired, tampered = cell_of("serve=beat", "defense/repair=wise_ft"), cell_of("serve=beat", "attack=ablation")

    assert repaired.stages["calibrate"].model is repaired.stages["repair"]
    assert tampered.stages["calibrate"].model is tampered.stages["tamper"]


def test_probe_of_an_attack_does_not_change_how_the_provider_asks_and_that_of_a_defense_does():
    attacked = cell_of("serve=beat", "attack=backdoor")
    defended = cell_of("serve=beat", "defense/finetune=ptst")

    assert [each.keys["calibrate"] for each in attacked.probes] == [attacked.keys["calibrate"]] * len(attacked.probes)
    assert attacked.probes
    assert all(each.keys["calibrate"] != defended.keys["calibrate"] for each in defended.probes)
    assert defended.probes


@pytest.mark.parametrize("name", METHODS)
def test_job_rebuilds_the_stages_from_their_stored_specs(name, tmp_path):
    cell, store = cell_of(f"serve={name}"), Store(tmp_path / "store")
    store.register(Plan.of(cell.leaves).stages)

    rebuilt = store.stage(cell.keys["harm_answers"])

    assert rebuilt == cell.stages["harm_answers"]
    assert rebuilt.serve == cell.stages["harm_answers"].serve
    assert rebuilt.calibrated == cell.stages["harm_answers"].calibrated


def test_grades_report_the_share_of_rejected_prompts_where_some_may_be():
    beat, lock = cell_of("serve=beat"), cell_of("serve=safetylock")

    named = {part: list(describe_stage(beat.stages[part]).get("reported_shares", {})) for part in GRADES}
    assert named == {"harm": ["rejected_harmful"], "accuracy": ["rejected_task"], "over_refusal": ["rejected_harmless"]}
    assert not any("reported_shares" in describe_stage(lock.stages[part]) for part in GRADES)
    assert "reported_shares" not in describe_stage(beat.stages["aligned_harm"])


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["serve=beat", "evaluation.decoding.engine=vllm"], "`evaluation.decoding.engine`: `beat` acts inside"),
        (["serve=safetylock", "task=lm_eval", "task.tasks=[arc_easy]"], "`task`: a benchmark runs the model itself"),
        (["serve=safetylock", "corpus=beavertails_pairs"], "`serve`: `safetylock` compares a harmful answer"),
        (["serve=beat", "corpus.benign=null"], "`corpus.benign`: the corpus has no rows for this role"),
        (["serve=beat", "serve.calibration.benign=null"], "`serve.threshold`: null, but no harmless prompts"),
        (["+serve={_target_: harness.attacks.mix.Mix}"], "is not a `ServeMethod`: it lacks `calibration`"),
        (
            ["serve=beat", "ensemble=topla_learned", "ensemble.members=[sft,booster]"],
            "`ensemble.method.combine`: `beat` acts on generated answers",
        ),
    ],
)
def test_what_a_method_cannot_do_is_refused_with_the_reason(overrides, reason):
    with pytest.raises(ConfigError) as error:
        check_cells(compose(overrides))

    assert reason in str(error.value)
