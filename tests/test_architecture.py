"""The rules of the house that a linter does not know."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(path for folder in ("harness", "hydra_plugins") for path in (ROOT / folder).rglob("*.py"))
HEAVY = ("torch", "transformers", "peft", "pandas", "scipy", "datasets", "wandb", "wandb_workspaces")
NAMELESS = {"utils", "util", "helpers", "helper", "misc", "common"}


def test_modules_are_discovered():
    assert len(MODULES) > 50


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_is_one_noun_with_a_docstring_in_three_hundred_lines(path):
    text = path.read_text()

    assert len(text.splitlines()) <= 300
    assert path.stem not in NAMELESS
    assert not text.strip() or ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_any_exception_is_caught_at_the_two_boundaries_only(path):
    handlers = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ExceptHandler)]
    broad = [
        handler
        for handler in handlers
        if handler.type is None
        or (isinstance(handler.type, ast.Name) and handler.type.id in {"Exception", "BaseException"})
    ]

    assert not broad or path in {ROOT / "harness" / "engine" / "attempt.py", ROOT / "harness" / "refusal.py"}


@pytest.mark.parametrize("package", ["wandb", "wandb_workspaces"])
def test_tracking_library_is_imported_by_one_module(package):
    importers = [
        path
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Import) and any(name.name.split(".")[0] == package for name in node.names))
        or (isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == package)
    ]

    assert len(set(importers)) == 1


def test_planning_imports_nothing_heavy(tmp_path):
    code = (
        "import sys\n"
        "from harness.cli import main\n"
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
