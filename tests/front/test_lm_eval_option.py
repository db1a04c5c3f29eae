"""`task=lm_eval` as a choice: what is measured, what the user trains on, and what is refused before anything runs."""

import sys

import pytest
from composed import compose

from harness.config.build import cells_of
from harness.errors import ConfigError
from harness.tasks.lm_eval import LmEvalTasks, TaskFolder

TASKS = "task.tasks=[piqa,arc_easy]"


def cell_of(*overrides):
    (cell,) = cells_of(compose(["task=lm_eval", *overrides]))
    return cell


def keys(cell, *parts):
    return [cell.stages[part].key for part in parts]


def test_benchmark_takes_the_place_of_the_tasks_own_test():
    cell = cell_of(TASKS)

    stages = cell.stages
    assert cell.labels["task"] == "lm_eval"
    assert stages["task_answers"].name == stages["aligned_task_answers"].name == "measure"
    assert stages["task_answers"].model is stages["finetune"]
    assert stages["accuracy"].answers is stages["task_answers"]
    assert stages["accuracy"].task is None
    assert stages["harm_answers"].name == "generate"
    assert stages["task_answers"].benchmark == LmEvalTasks(tasks=("arc_easy", "piqa"))


def test_user_trains_on_the_data_of_the_task_inside_and_the_aligned_model_is_measured_once():
    (plain,) = cells_of(compose([]))
    tiny, other = cell_of(TASKS), cell_of(TASKS, "task@task.user=sst2")

    assert keys(tiny, "poison", "finetune") == keys(plain, "poison", "finetune")
    assert keys(other, "poison") != keys(tiny, "poison")
    assert keys(other, "aligned_task_answers", "aligned_accuracy") == keys(
        tiny, "aligned_task_answers", "aligned_accuracy"
    )
    assert other.protocol != tiny.protocol


@pytest.mark.slow
def test_only_what_is_measured_is_part_of_the_key():
    def key(*overrides):
        return cell_of(*overrides).stages["accuracy"].key

    assert key(TASKS) == key("task.tasks=[arc_easy,piqa,piqa]")
    assert key(TASKS) == key(TASKS, "evaluation.decoding.max_prompt=100", "task@task.user=tiny")
    others = ["task.tasks=[piqa]", "task.limit=10", "task.num_fewshot=5", "task.metric=acc_norm"]
    assert len({key(TASKS, other) for other in others} | {key(TASKS)}) == 5


def test_instruct_model_is_measured_with_its_chat_template():
    chat = cell_of(TASKS, "model.encoding.template=chat", "+model.encoding.system=Be brief.")

    assert chat.stages["task_answers"].encoding.system == "Be brief."
    assert cell_of(TASKS).stages["task_answers"].encoding is None


def test_own_tasks_are_identified_by_content(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.yaml").write_text("task: mine\n")
    first, copy = (cell_of("task.tasks=[mine]", f"task.include={tmp_path / name}") for name in ("a", "b"))
    (tmp_path / "b" / "mine.yaml").write_text("task: mine\nnum_fewshot: 1\n")

    changed = cell_of("task.tasks=[mine]", f"task.include={tmp_path / 'b'}")

    assert first.stages["accuracy"].key == copy.stages["accuracy"].key != changed.stages["accuracy"].key
    assert [found.path for found in copy.stages["task_answers"].preflight() if "changed" in found.text] == [
        "task.include"
    ]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "`task.tasks`: is empty; expected names of tasks"),
        ([TASKS, "task.limit=0"], "`task.limit`"),
        ([TASKS, "task.num_fewshot=-1"], "`task.num_fewshot`"),
        ([TASKS, "task.include=/nowhere"], "`task.include`: /nowhere has no task"),
        (
            [TASKS, "++evaluation.encoding={prefix: Hi}"],
            "`task`: a benchmark writes its own prompts, but the evaluation",
        ),
    ],
)
def test_settings_that_measure_nothing_are_refused(overrides, said):
    with pytest.raises(ConfigError) as caught:
        cell_of(*overrides)

    assert said in str(caught.value)


def test_missing_package_is_named_before_anything_runs(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)

    (problem,) = LmEvalTasks(tasks=("piqa",)).preflight()

    assert problem.path == "task"
    assert "pip install 'harness[lm_eval]'" in problem.text


def test_folder_of_tasks_survives_being_stored(tmp_path):
    (tmp_path / "mine.yaml").write_text("task: mine\n")
    (tmp_path / "data.jsonl").write_text("{}\n")
    before = TaskFolder.parse(str(tmp_path))

    (tmp_path / "data.jsonl").write_text("{}\n{}\n")

    assert before.key != TaskFolder.parse(str(tmp_path)).key
    assert "has changed" in before.problem()
