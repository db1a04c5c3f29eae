"""What stores and configurations of earlier versions call the package's classes goes on working."""

import ast
import json
from importlib import import_module
from pathlib import Path

import pytest
from composed import compose

import harness
from harness.config.build import settings_of
from harness.engine.build import build
from harness.engine.classes import installed, name_of
from harness.engine.moved import MOVED, current
from harness.engine.spec import describe
from harness.sweep.record import ExecutionSettings

ROOT = Path(harness.__file__).parent
PATHS = json.loads((Path(__file__).parents[1] / "golden" / "paths.json").read_text())
"""Each name that was ever given to a class, and each import path that it had. Lines are added, never removed."""


def imported(path):
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


@pytest.mark.parametrize("path", [path for paths in PATHS.values() for path in paths])
def test_import_path_of_an_earlier_version_leads_to_the_class_of_the_same_name(path):
    (name,) = (name for name, paths in PATHS.items() if path in paths)

    assert name_of(imported(current(path))).partition("@")[0] == name


def test_every_class_that_data_can_name_is_listed_with_its_present_path():
    listed = {path for paths in PATHS.values() for path in paths}

    assert {named.path for named in installed()} <= listed
    assert {str(named).partition("@")[0] for named in installed()} == set(PATHS)


def test_every_line_of_the_table_of_moves_leads_to_something_that_is_there():
    for path in MOVED.values():
        head, _, name = current(path).rpartition(".")
        try:
            import_module(current(path))
        except ModuleNotFoundError:
            assert hasattr(import_module(head), name)


def test_classes_that_are_found_in_the_source_are_what_python_says_they_are():
    """Names are read from the text of modules; here every class of the package is asked itself."""
    stated = {
        f"{path.relative_to(ROOT.parent).with_suffix('').as_posix().replace('/', '.')}.{node.name}"
        for path in ROOT.rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
        and {"name", "version"}
        <= {item.target.id for item in node.body if isinstance(item, ast.AnnAssign) and item.value is not None}
    }

    assert {named.path for named in installed()} == stated
    for named in installed():
        cls = imported(named.path)
        assert (cls.name, cls.version) == (named.name, named.version)


@pytest.mark.parametrize(
    ("option", "path"), [("local", "harness.local.settings.Local"), ("slurm", "harness.slurm.settings.Slurm")]
)
def test_cluster_of_a_site_is_named_by_path_in_yaml_and_by_name_in_a_record(option, path):
    settings = settings_of(compose([f"cluster={option}"])[0])
    place = ExecutionSettings.of(settings)

    recorded = json.loads(json.dumps({"cluster": describe(place.cluster), "tracker": describe(place.tracker)}))
    by_path = {**recorded, "cluster": {**recorded["cluster"], "_target_": path}}

    assert recorded["cluster"]["_target_"] == f"settings/{option}@{type(place.cluster).version}"
    assert build(ExecutionSettings, recorded) == build(ExecutionSettings, by_path) == place
