"""Targets: which rows they are held against, and what comes of it."""

import math

import pandas as pd
import pytest

from harness.errors import ConfigError
from harness.report.data.targets import COLUMNS, Target, read_targets, with_targets

TARGET = Target(
    name="ablation_1",
    source="a log",
    labels={"defense": "antidote", "ratio": 0.2},
    settings={"finetune.budget.learning_rate": 1e-4, "repair.method.dense_ratio": 0.05},
    protocol={"judge.name": "beaver_dam"},
    scores={"hs": 65.3, "fa": 16.1},
    tolerance={"hs": 3.0, "fa": 3.0},
    unstated="the seed",
)
STAGES = {
    "f1": {"budget.learning_rate": 1e-4},
    "f2": {"budget.learning_rate": 1e-3},
    "r1": {"method.dense_ratio": 0.05},
    "r2": {"method.dense_ratio": 0.1},
}


def row(**changes):
    usual = {
        "defense": "antidote",
        "ratio": 0.2,
        "seed": 0,
        "hs": 65.3,
        "fa": 16.1,
        "key.finetune": "f1",
        "key.repair": "r1",
        "protocol.judge.name": "beaver_dam",
    }
    return usual | changes


def marked(*rows, by=()):
    return with_targets(pd.DataFrame(rows), [TARGET], STAGES.__getitem__, by=by)


@pytest.mark.parametrize(
    ("hs", "fa", "status"),
    [
        (65.3, 16.1, "match"),
        (68.3, 13.1, "match"),
        (68.4, 16.1, "near"),
        (65.3, 22.1, "near"),
        (59.2, 16.1, "off"),
        (65.3, 90.0, "off"),
        (math.nan, 16.1, ""),
    ],
)
def test_row_is_a_match_up_to_the_tolerance_and_near_up_to_twice(hs, fa, status):
    assert marked(row(hs=hs, fa=fa))["target_status"].tolist() == [status]


@pytest.mark.parametrize(
    "change",
    [
        {"defense": "vaccine"},
        {"ratio": 0.1},
        {"key.finetune": "f2"},
        {"key.repair": "r2"},
        {"key.repair": None},
        {"key.repair": math.nan},
        {"protocol.judge.name": "keywords"},
    ],
)
def test_row_that_misses_one_condition_has_no_target(change):
    (only,) = marked(row(**change)).to_dict("records")

    assert (only["target"], only["target_status"], only["target_source"]) == ("", "", "")
    assert math.isnan(only["target_hs"])


def test_row_with_a_target_carries_its_numbers_and_source():
    (only,) = marked(row()).to_dict("records")

    assert {name: only[name] for name in COLUMNS} == {
        "target": "ablation_1",
        "target_hs": 65.3,
        "target_fa": 16.1,
        "target_status": "match",
        "target_source": "a log",
        "target_unstated": "the seed",
    }


def test_seeds_are_averaged_before_they_are_compared():
    rows = marked(row(seed=0, hs=60.3), row(seed=1, hs=70.3))

    assert rows["target_status"].tolist() == ["match", "match"]


def test_rows_that_differ_in_more_than_the_seed_are_not_averaged():
    rows = marked(row(adapter="single", hs=60.3), row(adapter="double", hs=70.3), by=["adapter"])

    assert rows["target_status"].tolist() == ["near", "near"]


def test_rows_without_any_target_are_left_as_they_are():
    rows = pd.DataFrame([row(defense="sft")])

    assert with_targets(rows, [TARGET], STAGES.__getitem__).drop(columns=list(COLUMNS)).equals(rows)


def test_targets_that_ship_are_complete():
    targets = read_targets()

    assert len(targets) == len({target.name for target in targets}) == 26
    for target in targets:
        assert target.source
        assert target.unstated
        assert target.scores.keys() == target.tolerance.keys() == {"hs", "fa"}
        assert all(0 <= value <= 100 for value in target.scores.values())
        assert {"defense", "task", "ratio", "model"} <= target.labels.keys()
        assert {"judge.name", "new_tokens", "prompts.fields.rows", "task.new_tokens"} <= target.protocol.keys()
        assert {"align.refusal.rows", "align.refusal.origin.source.id"} <= target.settings.keys()
        assert "finetune.budget.learning_rate" in target.settings
        assert target.labels["defense"] != "antidote" or "repair.method.score" in target.settings


def composed(*overrides):
    """Return what is told about one cell of the Antidote repository's protocol on word problems, and its settings."""
    from composed import compose

    from harness.config.build import cells_of
    from harness.engine.spec import describe
    from harness.experiment.experiment import flatten

    (cell,) = cells_of(compose(["experiment=antidote_paper", "defense=antidote", "task=gsm8k", *overrides]))
    known = {stage.key: flatten(describe(stage)) for stage in cell.stages.values()}
    keys = {f"key.{part}": stage.key for part, stage in cell.stages.items()}
    protocol = {f"protocol.{name}": value for name, value in cell.protocol.items()}
    return cell.labels | keys | protocol | {"hs": 66.0, "fa": 15.0}, known


def test_target_that_ships_is_met_by_the_sweep_that_reproduces_it():
    told, known = composed("defense.repair.dense_ratio=0.05")

    found = with_targets(pd.DataFrame([told]), read_targets(), known.__getitem__)

    assert found["target"].tolist() == ["antidote_dense_ratio_2"]
    assert found["target_status"].tolist() == ["match"]


@pytest.mark.parametrize(
    "change",
    [
        "defense.repair.score=magnitude",
        "defense.repair.score=random",
        "defense.repair.harmful_rows=500",
        "task.new_tokens=200",
        "evaluation.new_tokens=128",
        "align.rows=2000",
        "corpus.evaluation.keep=all",
        "align.budget.warmup_ratio=0",
        "finetune.adapter=single",
    ],
)
def test_target_that_ships_is_not_held_against_a_row_of_other_conditions(change):
    told, known = composed("defense.repair.dense_ratio=0.05", change)

    found = with_targets(pd.DataFrame([told]), read_targets(), known.__getitem__)

    assert found["target"].tolist() == [""]


def test_file_of_targets_with_an_unknown_name_is_refused(tmp_path):
    path = tmp_path / "targets.yaml"
    path.write_text("mine: {source: a, tolerence: {hs: 1}, cells: [{hs: 1, faa: 2}]}")

    with pytest.raises(ConfigError, match=r"`mine`: unknown: faa, tolerence; missing: tolerance; expected"):
        read_targets(path)
