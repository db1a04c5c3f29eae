"""PTST: nothing is trained differently, and the questions have a system prompt that the training did not have."""

import pytest
from composed import compose

from harness.config.build import cells_of
from harness.defenses.ptst import PTST, SAFETY_PROMPT


@pytest.fixture(scope="module")
def cells():
    return {cell.labels["defense"]: cell for cell in cells_of(compose(["defense=ptst,sft"]))}


def test_model_is_that_of_plain_training(cells):
    plain, safe = cells["sft"].stages, cells["ptst"].stages

    assert {part: stage.key for part, stage in plain.items()} == {part: stage.key for part, stage in safe.items()}
    assert plain["finetune"].encoding.system is None


def test_every_question_of_the_probe_has_the_safety_prompt(cells):
    (probe,) = cells["ptst"].probes

    assert probe.swept["probe"] == "safe"
    assert probe.stages["finetune"].key == cells["sft"].stages["finetune"].key
    for part in ("harm_answers", "task_answers", "over_refusal_answers"):
        asked = probe.stages[part].encoding
        assert asked.system == SAFETY_PROMPT
        assert probe.stages[part].key != cells["sft"].stages[part].key


def test_safety_prompt_is_a_setting():
    assert [probe.change.system for probe in PTST(system="Be safe.").probes] == ["Be safe."]
    assert [problem.path for problem in PTST(system=" ").problems()] == ["system"]
    assert PTST().problems() == []
