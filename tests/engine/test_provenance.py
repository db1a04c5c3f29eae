import os
import subprocess
import sys

import pytest

from harness.engine.provenance import REDACTED, Stopwatch, git_state, redacted, source_digest


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("defense.align.lamb=5", "defense.align.lamb=5"),
        ("decoding.new_tokens=256", "decoding.new_tokens=256"),
        ("hub.token=abc", f"hub.token={REDACTED}"),
        ("+WANDB_API_KEY=abc", f"+WANDB_API_KEY={REDACTED}"),
        ("--password=abc", f"--password={REDACTED}"),
        ("model.path=hf_abcdefghijkl", f"model.path={REDACTED}"),
        ("https://user:abc@host/x", f"https://{REDACTED}@host/x"),
        ("sk-abcdefghijkl", REDACTED),
    ],
)
def test_redacted_argument_hides_tokens_and_nothing_else(argument: str, expected: str) -> None:
    assert redacted([argument]) == [expected]


def test_redacted_flag_hides_the_argument_that_follows() -> None:
    assert redacted(["stage", "--token", "abc", "KEY"]) == ["stage", "--token", REDACTED, "KEY"]


def test_provenance_names_what_ran_and_no_environment(monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecretvalue")

    found = Stopwatch().provenance(device="cpu")

    assert found["packages"]["filelock"]
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["host"] == os.uname().nodename
    assert found["started"] <= found["finished"]
    assert found["process_peak_bytes"] > 2**20
    assert found["device"] == "cpu"
    assert "verysecret" not in str(found)


def test_code_of_checkout_names_commit_and_changes_of_the_package_only(tmp_path) -> None:
    package = tmp_path / "harness"
    package.mkdir()
    (package / "a.py").touch()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "a"]):
        subprocess.run([*git, *command], check=True)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "x").touch()

    clean = git_state(package)
    (package / "b.py").touch()

    assert len(clean["commit"]) == 40
    assert (clean["dirty"], git_state(package)["dirty"]) == (False, True)


def test_code_of_installed_package_has_no_commit(tmp_path) -> None:
    (tmp_path / "harness").mkdir()

    assert git_state(tmp_path / "harness") is None


def test_digest_of_the_code_covers_the_packages_that_classes_may_come_from(tmp_path, monkeypatch) -> None:
    module = tmp_path / "my_lab" / "mine.py"
    module.parent.mkdir()
    module.write_text("strength = 1")
    monkeypatch.syspath_prepend(tmp_path)
    ours, before = source_digest(("harness.",)), source_digest(("harness.", "my_lab."))

    module.write_text("strength = 50")
    source_digest.cache_clear()

    assert ours == source_digest() == source_digest(("harness.", "not_there."))
    assert len({ours, before, source_digest(("harness.", "my_lab."))}) == 3
