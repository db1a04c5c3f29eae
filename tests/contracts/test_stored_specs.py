"""Specs that an earlier version wrote are the stages that they were."""

import json
from pathlib import Path

import pytest

from harness.engine.build import STAGE, TARGET
from harness.engine.spec import describe
from harness.engine.store import Store, StoreError

SPECS = json.loads((Path(__file__).parents[1] / "golden" / "specs.json").read_text())
"""By key, what commit 9ff18f6 wrote for its stages, with classes by import path. Lines are added, never changed."""

NEW_VERSIONS = {
    "harness.judges.beaver_dam.BeaverDam",
    "harness.judges.keywords.Keywords",
    "harness.defenses.tar.Tar",
}
"""Classes that compute something else since (docs/decisions.md): their stages run anew, under other keys."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    (root / "specs").mkdir()
    for key, spec in SPECS.items():
        (root / "specs" / f"{key}.json").write_text(json.dumps(spec))
    return Store(root)


def computed_otherwise(value):
    """Return whether a spec has such a class, or a parent that has one."""
    if isinstance(value, dict):
        parent = SPECS.get(value.get(STAGE), {})
        return value.get(TARGET) in NEW_VERSIONS or any(map(computed_otherwise, (*value.values(), *parent.values())))
    return isinstance(value, list) and any(map(computed_otherwise, value))


def test_specs_of_the_past_are_of_every_kind():
    assert {spec["_target_"].rpartition(".")[2] for spec in SPECS.values()} == {
        "Base",
        "Align",
        "Poison",
        "Finetune",
        "Repair",
        "Generate",
        "Grade",
    }
    assert len(SPECS) == 69


@pytest.mark.parametrize("key", [key for key, spec in SPECS.items() if not computed_otherwise(spec)])
def test_spec_of_the_past_is_a_stage_of_the_same_key_that_is_written_by_name(store, key):
    stage = store.stage(key)

    assert stage.key == key
    assert "harness." not in json.dumps(describe(stage))


@pytest.mark.parametrize("key", [key for key, spec in SPECS.items() if computed_otherwise(spec)])
def test_stage_of_a_class_with_a_new_version_is_not_taken_for_one_of_the_new(store, key):
    with pytest.raises(StoreError, match=r"the definition of `(grade|align)` has changed since"):
        store.stage(key)
