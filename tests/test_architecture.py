"""The rules of the house that a linter does not know."""

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = {
    str(path.relative_to(ROOT)): path.read_text()
    for folder in ("harness", "hydra_plugins")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
TREES = {name: ast.parse(text) for name, text in MODULES.items()}
HEAVY = ("torch", "transformers", "peft", "pandas", "scipy", "datasets", "wandb", "wandb_workspaces")
NAMELESS = {"utils", "util", "helpers", "helper", "misc", "common"}
MOST_LINES = 500


def test_modules_are_discovered():
    assert {
        "harness/cli/main.py",
        "harness/execution/attempt.py",
        "hydra_plugins/harness_launcher.py",
    } <= MODULES.keys()


def test_no_module_has_more_lines_than_a_reader_can_hold():
    long = {name: len(text.splitlines()) for name, text in MODULES.items()}

    assert {name: lines for name, lines in long.items() if lines > MOST_LINES} == {}


def test_every_module_is_named_after_what_it_holds():
    assert [name for name in MODULES if Path(name).stem in NAMELESS] == []


def test_every_module_says_what_it_is_for():
    assert [name for name, text in MODULES.items() if text.strip() and not ast.get_docstring(TREES[name])] == []


def test_any_exception_is_caught_at_the_two_boundaries_only():
    broad = [
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        if node.type is None or (isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"})
    ]

    assert set(broad) == {"harness/execution/attempt.py", "harness/config/hydra_errors.py"}


@pytest.mark.parametrize("package", ["wandb", "wandb_workspaces"])
def test_tracking_library_is_imported_by_one_module(package):
    importers = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Import) and any(each.name.split(".")[0] == package for each in node.names))
        or (isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == package)
    }

    assert len(importers) == 1


def test_planning_imports_nothing_heavy(tmp_path):
    code = (
        "import sys\n"
        "from harness.cli.main import main\n"
        "try:\n"
        "    main(['plan', '-m', 'defense=sft,booster', 'attack_ratio=p00,p10'])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )

    assert done.returncode == 0, done.stderr
    assert "align" in done.stdout
    assert not list(tmp_path.iterdir()), "planning writes nothing"


def test_picture_of_the_layers_is_what_the_contract_says():
    script = runpy.run_path(str(ROOT / "docs" / "architecture.py"))

    assert script["PICTURE"].read_text("utf-8") == script["draw"]()


def test_test_modules_have_names_of_their_own():
    # Folders of tests are not packages: of two modules with one name, pytest collects only the first.
    names = [path.name for path in ROOT.glob("tests/*/test_*.py")]

    assert sorted(names) == sorted(set(names))
