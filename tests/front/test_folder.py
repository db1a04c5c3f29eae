"""Folders as users write them."""

import os

import pytest

from harness.engine.folder import folder, forget_empty_variables
from harness.errors import ConfigError


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))

    assert folder("~", "store") == tmp_path
    assert folder("~/hs", "store") == tmp_path / "hs"
    assert str(folder("a~/b", "store")) == "a~/b"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        ("  ", "it is empty"),
        ("~nobody-of-this-name/x", "there is no home directory `~nobody-of-this-name`"),
        ("a" * 300, "File name too long"),
        ("a\0b", "a character not allowed in paths"),
        ("\ud800", "a character not allowed in paths"),
    ],
)
def test_what_cannot_be_a_folder_is_refused_by_its_name(text, words):
    with pytest.raises(ConfigError, match="`--store`") as refused:
        folder(text, "--store")

    assert words in str(refused.value)


def test_empty_variables_are_forgotten_and_others_are_kept(monkeypatch):
    monkeypatch.setenv("HARNESS_STORE", "")
    monkeypatch.setenv("HARNESS_DATA", "data")
    monkeypatch.setenv("OTHER_STORE", "")

    forget_empty_variables("HARNESS_")

    assert "HARNESS_STORE" not in os.environ
    assert os.environ["HARNESS_DATA"] == "data"
    assert os.environ["OTHER_STORE"] == ""
