"""The contract tests find methods of other packages, and hold them to the same."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness.defenses import lisa

pytestmark = pytest.mark.slow

KEPT = "        return {"
"""How Lisa's state begins; without it, a resumed run goes on elsewhere."""


def checked(folder):
    chosen = ["tests/contracts/test_train_methods.py", "--methods", str(folder), "-k", "theirs and killed_and_resumed"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *chosen, "-q", "-p", "no:cacheprovider"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )


def test_method_of_another_folder_is_checked_like_those_here(tmp_path):
    source = Path(lisa.__file__).read_text().replace('ClassVar[str] = "lisa"', 'ClassVar[str] = "theirs"')
    (tmp_path / "theirs.py").write_text(source)
    sound = checked(tmp_path)
    head, _, state = source.partition("def state_dict(")
    (tmp_path / "theirs.py").write_text(f"{head}def state_dict({state.replace(KEPT, '        return {} and {', 1)}")
    forgetful = checked(tmp_path)

    assert sound.returncode == 0, sound.stdout
    assert forgetful.returncode == 1
    assert "FAILED" in forgetful.stdout
    assert "[theirs]" in forgetful.stdout


def test_folder_that_is_none_is_refused(tmp_path):
    found = checked(tmp_path / "nowhere")

    assert found.returncode == pytest.ExitCode.USAGE_ERROR
    assert "expected one with modules of defenses" in found.stderr
