"""The record of a sweep: the place where it ran can be rebuilt from it, with changes."""

import copy

import pytest
from recorded import record

from harness.errors import ConfigError
from harness.local.settings import Local
from harness.slurm.settings import Slurm
from harness.sweep.record import execution_settings_of, plan_of, store_of


@pytest.fixture
def slurm(tmp_path):
    sweep = record(tmp_path / "store", "cluster=slurm", "cluster.partition=long", "cluster.setup=[module load x]")
    return sweep.store.read_sweep(sweep.sweep)


def test_place_of_a_record_is_the_one_that_was_recorded(slurm):
    place = execution_settings_of(slurm, {})

    assert isinstance(place.cluster, Slurm)
    assert (place.cluster.partition, place.cluster.setup) == ("long", ("module load x",))
    assert place.cluster.resources["align"].minutes == 60
    assert place.tracker.name == "jsonl"


@pytest.mark.slow
def test_sweep_that_is_asked_for_again_keeps_the_time_when_it_was_made(tmp_path):
    made = record(tmp_path / "store")
    before = made.store.read_sweep(made.sweep) | {"created": "2026-01-01T00:00:00+00:00"}
    made.store.write_sweep(made.sweep, before)

    again = record(tmp_path / "store")

    assert again.store.read_sweep(again.sweep)["created"] == "2026-01-01T00:00:00+00:00"


@pytest.mark.parametrize("flag", [["--config-dir", "/lab/conf"], ["--config-dir=/lab/conf"], ["-cd", "/lab/conf"], []])
def test_cell_has_the_flags_without_which_its_overrides_mean_something_else(tmp_path, monkeypatch, flag):
    monkeypatch.setattr("sys.argv", ["harness", *flag, "-m", "seed=0"])

    made = record(tmp_path / "store")

    (cell,) = made.store.read_sweep(made.sweep)["cells"]
    assert cell.get("flags") == (["--config-dir", "/lab/conf"] if flag else None)


def test_place_of_a_local_sweep_is_local(tmp_path):
    sweep = record(tmp_path / "store", "cluster.workers=3")

    assert execution_settings_of(sweep.store.read_sweep(sweep.sweep), {}).cluster == Local(workers=3)


def test_place_of_a_record_that_named_resources_by_a_class_is_read(slurm):
    slurm["place"]["cluster"]["resources"] = {
        "_target_": "settings/resources by kind@1",
        **slurm["place"]["cluster"]["resources"],
    }

    assert execution_settings_of(slurm, {}).cluster.resources.keys() == {
        "default", "base", "align", "poison", "finetune", "repair", "generate", "grade", "measure",
        "tamper", "moderate", "refusals", "ensemble", "leak", "score",
        "expert", "fuse", "route", "routes", "client", "server", "calibrate", "harmful_rows",
    }  # fmt: skip


def test_changes_are_laid_over_the_place_and_the_record_stays_as_it_is(slurm):
    before = copy.deepcopy(slurm)

    place = execution_settings_of(
        slurm,
        {"cluster.on_oom": "shrink", "cluster.resources.finetune.minutes": 5, "cluster.sbatch": ["exclusive"]},
    )

    assert isinstance(place.cluster, Slurm)
    assert (place.cluster.on_oom, place.cluster.sbatch) == ("shrink", ("exclusive",))
    assert place.cluster.resources["finetune"].minutes == 5
    assert place.cluster.resources["align"].minutes == 60
    assert slurm == before


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("cluster.on_oom", "explode", "`cluster.on_oom`"),
        ("cluster.requeus", 1, "`cluster.requeus`: unknown setting"),
        ("cluster.requeues", "many", "`cluster.requeues`"),
        ("cluster.resources.tune.minutes", 1, "tune"),
        ("cluster.resources.finetune.minutes", 0, "`cluster.resources.finetune.minutes`"),
        ("cluster.partition.name", "x", "`cluster.partition.name`: `partition` is a single value"),
        ("cluster.sbatch.first", "x", "`cluster.sbatch.first`"),
    ],
)
def test_wrong_change_is_named(slurm, name, value, words):
    with pytest.raises(ConfigError) as caught:
        execution_settings_of(slurm, {name: value})

    assert words in str(caught.value)


def test_plan_of_a_record_is_the_one_that_was_planned(tmp_path):
    sweep = record(tmp_path / "store", "defense=sft,booster", "attack_ratio=p00,p20")
    found = sweep.store.read_sweep(sweep.sweep)

    plan = plan_of(store_of(sweep.store, found), found)

    assert {stage.key for stage in plan.stages} == {stage.key for stage in sweep.plan.stages}
    assert {leaf.key for leaf in plan.leaves} == {leaf.key for leaf in sweep.plan.leaves}
