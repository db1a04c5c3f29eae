"""An engine for answers that is named in the settings: its key, and the interpreter that it needs."""

import os
import sys

import pytest
from composed import compose

from harness.config.build import cells_of
from harness.errors import ConfigError
from harness.execution.cluster import VLLM_PYTHON
from harness.generation.decoding import Sampling, ThoughtBudget
from harness.local.settings import Local
from harness.sweep.run import check_engines
from harness.training.process_setup import prepare_process


@pytest.fixture(autouse=True)
def _nameless(monkeypatch):
    """Start without an interpreter in the environment, and end as it was."""
    monkeypatch.setenv(VLLM_PYTHON, "")
    monkeypatch.delenv(VLLM_PYTHON)


def test_engine_without_an_interpreter_is_refused_before_anything_runs(monkeypatch):
    asked, plain = cells_of(compose(["evaluation.decoding.engine=vllm,null"]))

    with pytest.raises(ConfigError, match=r"`cluster.vllm_python`: is null, and .* expected the Python interpreter"):
        check_engines(list(asked.stages.values()), Local())
    check_engines(list(plain.stages.values()), Local())
    check_engines(list(asked.stages.values()), Local(vllm_python=sys.executable))
    monkeypatch.setenv(VLLM_PYTHON, sys.executable)
    check_engines(list(asked.stages.values()), Local())


def test_interpreter_that_cannot_be_run_is_refused():
    (problem,) = Local(vllm_python="/nowhere/python").problems()

    assert str(problem) == "`vllm_python`: `/nowhere/python` cannot be run; expected the path of a Python interpreter"
    assert Local(vllm_python=sys.executable).problems() == []


def test_named_engine_is_another_key_and_none_is_no_part_of_it():
    named, null = cells_of(compose(["evaluation.decoding.engine=vllm,null"]))
    (before,) = cells_of(compose([]))

    keys = [{part: stage.key for part, stage in cell.stages.items()} for cell in (named, null, before)]

    assert keys[1] == keys[2]
    changed = {part for part in keys[0] if keys[0][part] != keys[1][part]}
    assert changed == {part for part in keys[0] if part.endswith(("answers", "harm", "accuracy", "over_refusal"))}
    assert len(changed) == 12


def test_thought_budgets_and_samples_are_part_of_a_key_where_they_are_set():
    (before,) = cells_of(compose(["thoughts=s1"]))
    settings = [
        "evaluation.decoding.thought={tokens: 8}",
        "evaluation.decoding.sampling={samples: 2, temperature: 0.7}",
    ]
    cells = [cells_of(compose(["thoughts=s1", setting]))[0] for setting in settings]

    assert cells[0].stages["harm_answers"].decoding.thought == ThoughtBudget(tokens=8)
    assert cells[1].stages["task_answers"].decoding.sampling == Sampling(samples=2, temperature=0.7)
    assert len({cell.stages["harm_answers"].key for cell in (before, *cells)}) == 3
    assert len({cell.stages["finetune"].key for cell in (before, *cells)}) == 1


@pytest.mark.parametrize(
    ("overrides", "path"),
    [
        (["evaluation.decoding.thought={tokens: 8}"], "evaluation.decoding.thought"),
        (
            ["thoughts=s1", "evaluation.decoding.thought={tokens: 8}", "evaluation.decoding.engine=vllm"],
            "evaluation.decoding.thought",
        ),
        (
            ["evaluation.decoding.sampling={samples: 2}", "evaluation.decoding.engine=vllm"],
            "evaluation.decoding.sampling",
        ),
        (
            ["evaluation.decoding.sampling={samples: 2}", "ensemble=topla", "ensemble.members=[sft,vaccine,booster]"],
            "evaluation.decoding.sampling.samples",
        ),
        (
            ["thoughts=s1", "ensemble=topla_soft_vote", "ensemble.members=[sft,vaccine,booster]"],
            "ensemble.method.combine",
        ),
    ],
)
def test_decoding_that_cannot_be_carried_out_is_refused(overrides, path):
    with pytest.raises(ConfigError) as refused:
        cells_of(compose(overrides))

    assert path in [problem.path for problem in refused.value.problems]


def test_interpreter_is_told_to_every_process_that_runs_stages():
    prepare_process(None)
    assert VLLM_PYTHON not in os.environ

    prepare_process(None, vllm_python="/opt/vllm/bin/python")
    assert os.environ[VLLM_PYTHON] == "/opt/vllm/bin/python"
