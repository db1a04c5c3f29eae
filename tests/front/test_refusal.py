"""Where a mistake ends and a bug begins: what Hydra raises by itself is the user's, what our code raises is not."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from harness.config.hydra_errors import HydraError, undecodable_files, wrap_hydra_errors
from harness.errors import ConfigError, StoreError


@pytest.fixture
def bug_of_ours():
    """A function of a module of the house's, which is wrong."""
    space = {"__name__": "harness.made_up"}
    exec(compile("def options(*asked, **others):\n    return {}['nothing']\n", "made_up.py", "exec"), space)
    return space["options"]


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda: OverridesParser.create().parse_overrides(["seed=[1"]), "override_grammar"),
        (lambda: list(OverridesParser.create().parse_overrides(["seed=range(0,5,0)"])[0].sweep_iterator()), "range()"),
        (lambda: OmegaConf.to_container(OmegaConf.create({"a": "${b}"}), resolve=True), "'b' not found"),
        (lambda: OmegaConf.create("a: \x07"), "special characters are not allowed"),
        (lambda: OmegaConf.create("a: [1\nb: 2"), "line 2"),
        (lambda: OmegaConf.create("a: !!int x"), "invalid literal"),
        (lambda: OmegaConf.create("a: " + "[" * 5000), "nested too deeply"),
    ],
)
def test_what_a_library_raises_is_a_mistake_told_in_one_line(mistake, words):
    with pytest.raises(HydraError) as refused, wrap_hydra_errors():
        mistake()

    (problem,) = map(str, refused.value.problems)
    assert words in problem
    assert "\n" not in problem
    assert len(problem) < 700
    assert refused.value.exit_code == 2


def test_bug_of_ours_stays_one(bug_of_ours):
    with pytest.raises(KeyError), wrap_hydra_errors():
        bug_of_ours()
    with pytest.raises(ZeroDivisionError), wrap_hydra_errors():
        _ = 1 / len([])


def test_bug_of_ours_that_a_library_has_called_stays_one(bug_of_ours):
    class Loader:
        get_group_options = staticmethod(bug_of_ours)

    (glob,) = OverridesParser.create(config_loader=Loader()).parse_overrides(["align=glob(*)"])

    with pytest.raises(KeyError), wrap_hydra_errors():
        glob.sweep_iterator()


def test_error_that_says_what_is_wrong_passes():
    with pytest.raises(StoreError, match="full"), wrap_hydra_errors():
        raise StoreError("full")


def test_file_that_is_not_utf8_is_named_with_its_line(tmp_path):
    (tmp_path / "align").mkdir()
    (tmp_path / "align" / "mine.yaml").write_bytes("rows: 3\n# für alle\n".encode("latin-1"))
    (tmp_path / "align" / "right.yaml").write_text("# für alle\n", encoding="utf-8")

    (problem,) = undecodable_files(str(tmp_path))

    assert f"`{tmp_path}/align/mine.yaml`, line 2: the byte 0xfc is not UTF-8" in problem
    assert undecodable_files(None) == []


def test_refusal_is_a_mistake_of_settings():
    assert issubclass(HydraError, ConfigError)
    assert not issubclass(HydraError, HydraException)
