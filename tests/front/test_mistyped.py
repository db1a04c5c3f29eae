"""What is mistyped on the command line or in a file of settings: told in one message, exit code 2, no traceback."""

import pytest

MISTYPED = {
    "an unknown verb to help with": (["help", "reprot"], ["`reprot`", "did you mean `report`"]),
    "a verb with a dash": (["re-port"], ["`re-port`: unknown verb", "did you mean `report`"]),
    "two things at once": (["plan", "-m", "-r"], ["--run and --multirun: these flags exclude each other"]),
    "a configuration of a sweep": (["-m", "--cfg", "job"], ["--multirun and --cfg"]),
    "a resolution of nothing": (["plan", "--resolve"], ["--resolve", "--cfg"]),
    "a completion of a sweep": (["plan", "-sc", "install=bash", "-m"], ["--multirun and --shell-completion"]),
    "a package that is not there": (["--cfg", "job", "--package", "nothing"], ["'nothing' not found"]),
    "a pickle to run": (["--experimental-rerun", "job.pickle"], ["--experimental-rerun"]),
    "a range with steps of nothing": (["plan", "-m", "seed=range(0,5,0)"], ["range() arg 3 must not be zero"]),
    "a sweep over nothing": (["plan", "-m", "seed=range(0)"], ["`seed=range(0)`: the sweep has no values"]),
    "a glob that matches nothing": (["plan", "-m", "defense.repair=glob(*)"], ["it is not a config group"]),
    "a sweep over nothing by another sweeper": (
        ["plan", "-m", "hydra/sweeper=basic", "seed=range(0)"],
        ["the sweep has no cells"],
    ),
    "a sweep without an end": (["plan", "-m", "seed=range(0,1,1e-300)"], ["more than 100000 values"]),
    "a sweep with too many cells": (["plan", "-m", "seed=range(400)", "align.rows=range(1,401)"], ["100000 at most"]),
    "a number for an option that is added": (["plan", "+judge=20"], ["`judge`: 20 is not an option", "`keywords`"]),
    "a number for an option that is removed": (["plan", "~attack=1_000"], ["`attack`: 1000 is not an option"]),
    "a list of lists for an option": (["plan", "align=[[[]]]"], ["`align`: [[[]]] is not an option", "`tiny`"]),
    "things that have no order": (["plan", "-m", "defense.align.harmful_rows=%,sort(3,1)"], ["ChoiceSweep"]),
    "an interpolation of nothing": (
        ["plan", "++tuned.repnoise.beta=${oc.decode:'{'}"],
        ["GrammarParseError raised while resolving"],
    ),
    "an interpolation of nothing by another sweeper": (
        ["plan", "-m", "hydra/sweeper=basic", "align.adapter.targets=${oc.decode:'{'}", "seed=1,2"],
        ["align.adapter.targets="],
    ),
    "a name that is too long": (["plan", "a" * 300 + "=1"], ["aaa"]),
    "a control character": (["hydra.output_subdir=1\x7f", "-sc"], ["special characters are not allowed"]),
    "brackets without an end": (["plan", "seed=" + "[" * 3000], ["no viable alternative at input", "characters)"]),
    "a store without a name": (["plan", "store="], ["`store`", "expected a folder"]),
    "a store in nobody's home": (["report", "--store", "~nobody-here/s"], ["`--store`", "`~nobody-here`"]),
}


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HARNESS_STORE", raising=False)
    monkeypatch.delenv("HARNESS_DATA", raising=False)


@pytest.mark.parametrize("name", MISTYPED)
def test_mistyped_line_is_told(run, tmp_path, name):
    arguments, said = MISTYPED[name]

    code, out, error = run(*arguments)

    assert (code, out) == (2, "")
    assert all(text in error for text in said), error
    assert not list(tmp_path.iterdir())


BROKEN = {
    "a sweep file": (b"seed: [1, 2", "broken.yaml`, line"),
    "a tab in it": (b"align:\n\trows: 3", "broken.yaml`, line"),
    "another encoding": (b"# f\xfcr alle\nseed: 1", "broken.yaml`, line 2: the byte 0xfc is not UTF-8"),
    "a control character": (b"title: 'a\x07'", "special characters are not allowed"),
    "a list for a default": (b"defaults: [[a]]", "Unsupported type in defaults"),
    "a default of another kind": (b"defaults: 1", "defaults"),
    "a reference to itself": (b"seed: ${align.rows}\nalign: {rows: '${seed}'}", "ecursi"),
    "a number without an end": (b"seed: " + b"9" * 5000, "digits"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_yaml_is_told_with_what_is_wrong(run, tmp_path, name):
    content, words = BROKEN[name]
    folder = tmp_path / "mine" / "sweeps"
    folder.mkdir(parents=True)
    (folder / "broken.yaml").write_bytes(b"# @package _global_\n" + content + b"\n")

    code, out, error = run("plan", "-m", "--config-dir", str(tmp_path / "mine"), "+sweeps=broken")

    assert (code, out) == (2, "")
    assert words in error


PARAMS = "hydra: {sweeper: {params: {%s}}}\n"
TOP = "# @package _global_\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (TOP + PARAMS % "defense: [sft, vaccine]", "`hydra.sweeper.params.defense`: a list is one value"),
        (TOP + PARAMS % "seed: [0, 1]", "as in `seed: 0,1`"),
        (PARAMS % "seed: '0,1'", "expected `# @package _global_` in `sweeps/mine.yaml` in `--config-dir`"),
        ("", "`sweeps`: its settings are not at the top level"),
    ],
)
def test_usual_mistakes_of_a_first_sweep_file_are_told_with_what_to_write(run, tmp_path, content, words):
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mine.yaml").write_text(content)

    code, out, error = run("plan", "-m", "--config-dir", str(tmp_path), "+sweeps=mine")

    assert (code, out) == (2, "")
    assert words in error


def test_list_in_a_sweep_file_is_the_value_of_a_list(run, tmp_path):
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mine.yaml").write_text(TOP + PARAMS % "align.adapter.targets: [q_proj], seed: '0,1'")

    code, out, error = run("plan", "-m", "--config-dir", str(tmp_path), "+sweeps=mine")

    assert (code, error) == (0, "")
    assert "2 cells" in out


def test_file_of_another_folder_is_not_said_to_be_a_shipped_one(run, tmp_path):
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "mine.yaml").write_text("_target_: harness.judges.keywords.Keywords\nnothing: 1\n")

    code, _, error = run("plan", "--config-dir", str(tmp_path), "judge=mine")

    assert code == 2
    assert "Set in `judge/mine.yaml` in `--config-dir`" in error


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["help"], ["help", "help"], ["help", "plan"], ["help", "report"]])
def test_help_helps(run, arguments):
    code, out, error = run(*arguments)

    assert (code, error) == (0, "")
    assert "harness" in out


@pytest.mark.parametrize("arguments", [["plan", "store='~/hs'"], ["report", "--store=~/hs"], ["gc", "--store", "~/hs"]])
def test_store_may_be_in_the_home(run, tmp_path, monkeypatch, arguments):
    monkeypatch.setenv("HOME", str(tmp_path))

    _, out, error = run(*arguments)

    assert f"{tmp_path}/hs" in out + error
    assert "~" not in out + error


def test_home_is_expanded_in_variables(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HARNESS_STORE", "~/hs")

    assert f"store {tmp_path}/home/hs\n" in run("plan")[1]
    assert f"`{tmp_path}/home/hs`" in run("report")[2]


def test_empty_variable_is_an_unset_one(run, tmp_path, monkeypatch):
    for name in ("HARNESS_STORE", "HARNESS_DATA", "HARNESS_SOURCES"):
        monkeypatch.setenv(name, "")

    assert f"store {tmp_path}/store\n" in run("plan")[1]
    assert f"`{tmp_path}/store`" in run("report")[2]
