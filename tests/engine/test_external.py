"""External classes: what tells of their code, and whose results the store has under their name."""

import json

import pytest
from toys import Add, Number, run

from harness.engine.external import external_classes, external_paths
from harness.engine.spec import describe
from harness.errors import ConfigError
from harness.judges.keywords import Keywords
from harness.stages.grade import Grade
from harness.sweep.external_code import check_external_code


@pytest.fixture
def stored(root, store):
    """A finished stage of a class that is not the harness's."""
    stage = Number(value=1.0)
    run(root, [stage])
    return stage


def checked(stages, store):
    notes = []
    check_external_code(stages, store, notes.append)
    return notes


def rewritten(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_code_is_that_of_the_stages_own_classes_and_not_of_its_parents(stored):
    assert external_classes(stored).keys() == {"toys.Number"}
    assert external_classes(Add(parent=stored, amount=1)).keys() == {"toys.Add"}
    assert external_paths(describe(stored)) == {"toys.Number"}


def test_classes_of_the_harness_are_no_external_ones():
    grade = Grade(answers=Number(value=1.0), judge=Keywords())

    assert external_classes(grade) == {}
    assert external_paths(describe(grade)) == set()


def test_artifact_says_what_code_it_is_of(stored, store):
    assert store.manifest(stored.key).provenance["classes"] == external_classes(stored)
    assert checked([stored], store) == []


def test_class_that_has_changed_since_is_told(stored, store):
    def change(manifest):
        manifest["provenance"]["classes"]["toys.Number"]["code"] = "other"

    rewritten(store.folder(stored) / "manifest.json", change)

    (note,) = checked([stored, Number(value=2.0)], store)

    assert note.startswith("toys.Number has changed since stages that are used from the store were computed (1); raise")


def test_results_of_another_class_of_the_same_name_are_refused(stored, store):
    rewritten(store.folder(stored) / "spec.json", lambda spec: spec.update(_target_="lab.Number"))

    with pytest.raises(ConfigError, match=r"`toys.Number`: the store has results of `lab.Number` under this name"):
        checked([stored], store)
