"""The user's mistakes: one clear message, exit code 2, no traceback, nothing stored."""

import os
import socket
import subprocess
import sys

import pytest
from product import QUICK

MISTAKES = {
    "a number for an option": (["attack_ratio=0.1"], ["`attack_ratio`", "`p10`", "attack.ratio="]),
    "a number for an option in a sweep": (["-m", "attack_ratio=0,0.1"], ["`attack_ratio`", "`p00`"]),
    "an unknown experiment": (["experiment=nothing"], ["experiment", "smollm2"]),
    "an unknown experiment to fetch": (["doctor", "--fetch", "nothing"], ["experiment", "smollm2"]),
    "a sweep file without -m": (["+sweeps=demo"], ["-m"]),
    "an unknown verb": (["plann"], ["`plann`", "did you mean `plan`"]),
    "a GPU where there is none": (["cluster.device=cuda:7"], ["`cluster.device`"]),
    "an unknown option": (["defense=boster"], ["boster", "booster"]),
    "an unknown group": (["defence=sft"], ["`defence`", "did you mean `defense`"]),
    "an unknown setting": (["defense=booster", "defense.align.lambda=1"], ["did you mean `lamb`", "booster.yaml"]),
    "a ratio outside 0..1": (["attack.ratio=1.5"], ["`attack.ratio`", "0..1"]),
    "a negative lambda": (["defense=booster", "defense.align.lamb=-1"], ["`defense.align.lamb`", ">= 0"]),
    "a text for a number": (["align.rows=many"], ["`align.rows`", "whole number"]),
    "a bad objective": (["objective=speed"], ["`objective`", "`hs`"]),
    "a mixture larger than the task": (["finetune.rows=5000"], ["`finetune.rows`", "1000"]),
    "more harmful rows than the attacker has": (
        ["finetune.rows=1000", "attack.ratio=0.9"],
        ["`attack.ratio`", "900", "500"],
    ),
    "a gated source without a token": (
        ["corpus=advbench", "judge=keywords", "align.rows=50", "evaluation.rows=50"],
        ["advbench", "HARNESS_DATA"],
    ),
    "an override that cannot be read": (["seed=[1"], ["'[1'", "override_grammar"]),
    "a folder of configurations that is not there": (["--config-dir", "nowhere"], ["nowhere"]),
    "two sweep files at once": (["-m", "+sweeps=demo,tiny_rho"], ["a single sweep file", "demo,tiny_rho"]),
    "a setting of a slot that is empty": (["-m", "defense=sft", "defense.align.lamb=1,5"], ["`defense.align.lamb`"]),
    "an unknown sweep": (["report", "nothing"], ["no sweep"]),
    "a report into a file": (["report", "--out", "/dev/null"], ["--out", "`/dev/null` is a file"]),
    "a report into nothing": (["report", "--out="], ["--out", "expected a folder"]),
    "an unknown key": (["stage", "ffff"], ["ffff"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_told_in_one_message(harness, name):
    arguments, said = MISTAKES[name]

    run = harness(*arguments)

    assert run.returncode == 2, run.stdout + run.stderr
    assert "Traceback" not in run.stdout + run.stderr
    assert all(text in run.stderr for text in said), run.stderr
    assert not list(harness.folder.glob("store/artifacts/*/*"))


@pytest.mark.slow
def test_mistakes_in_a_multirun_are_reported_together(harness):
    run = harness("-m", "defense=booster", "defense.align.lamb=-1,2", "defense.align.alpha=0", "attack.ratio=0.1,3")

    assert run.returncode == 2
    assert "3 problems" in run.stderr
    assert run.stderr.count("`attack.ratio`: 3.0") == 1


def test_missing_and_altered_data_files_are_told_apart(harness, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "advbench_prompts.csv").write_text("Do something\n")

    run = harness("corpus=advbench", "judge=keywords", "align.rows=50", "evaluation.rows=50", HARNESS_DATA=str(data))

    assert run.returncode == 2
    assert "checksum" in run.stderr or "sha256" in run.stderr
    assert "Traceback" not in run.stderr


def test_token_in_the_command_line_reaches_neither_store_nor_messages(harness):
    secret = "hf_" + "abcdefghijklmnop"

    run = harness("attack_ratio=p00", f"title={secret}", *QUICK)
    stored = subprocess.run(
        ["grep", "-r", secret, "."], cwd=harness.folder, capture_output=True, text=True, check=False
    )

    assert run.returncode == 2
    assert stored.stdout == ""


def test_store_that_is_a_file_is_told(harness):
    (harness.folder / "store").write_text("a file in the place of the store")

    run = harness("attack_ratio=p00", *QUICK)

    assert run.returncode == 2
    assert "store" in run.stderr
    assert "Traceback" not in run.stderr


def test_help_names_groups_and_verbs_and_leaves_with_zero(harness):
    run = harness("--help")

    assert run.returncode == 0
    for word in ("defense/align: antibody", "attack_ratio: p00", "harness plan", "harness doctor"):
        assert word in run.stdout


def test_what_an_ascii_terminal_cannot_show_is_substituted(harness):
    run = harness("plan", "store='für/alle'", PYTHONIOENCODING="ascii")

    assert run.returncode == 0, run.stderr
    assert "/f\\xfcr/alle" in run.stdout


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_stream_is_no_mistake(harness, closed):
    run = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m harness help {closed}"],
        cwd=harness.folder,
        env=harness.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert run.returncode == 0
    assert "Traceback" not in run.stdout + run.stderr


def test_full_disk_behind_the_output_is_told(harness):
    with open("/dev/full", "w", encoding="utf-8") as full:
        run = subprocess.run(
            harness.command("plan"),
            cwd=harness.folder,
            env=harness.environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
        )

    assert run.returncode == 2
    assert "output cannot be written: No space left on device" in run.stderr
    assert "Traceback" not in run.stderr


PLUGINS = {
    "an import that fails": ("raise AttributeError('optuna has no samplers')", "optuna has no samplers"),
    "a sweeper that cannot be made": (
        """
from dataclasses import dataclass
from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper

@dataclass
class Conf:
    _target_: str = "hydra_plugins.broken.Broken"

ConfigStore.instance().store(group="hydra/sweeper", name="broken", node=Conf, provider="broken")

class Broken(Sweeper):
    def __init__(self): import a_package_that_is_broken
    def setup(self, **given): ...
    def sweep(self, arguments): ...
""",
        "No module named 'a_package_that_is_broken'",
    ),
}


@pytest.mark.parametrize("name", PLUGINS)
def test_plugin_that_cannot_be_loaded_says_why(harness, name):
    source, words = PLUGINS[name]
    folder = harness.folder / "site" / "hydra_plugins"
    folder.mkdir(parents=True)
    (folder / "broken.py").write_text(source)

    run = harness(
        "plan", "-m", "hydra/sweeper=broken", "seed=interval(0,1)", PYTHONPATH=f"{folder.parent}:{os.getcwd()}"
    )

    assert run.returncode == 2, run.stdout + run.stderr
    assert words in run.stderr
    assert "does not support" not in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.slow
def test_doctor_asks_the_hub_only_when_it_is_asked_to(harness):
    """A Hub on this machine counts who asks."""
    with socket.create_server(("127.0.0.1", 0)) as hub:
        hub.settimeout(0.0)
        online = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}"}

        quiet = harness("doctor", **online)
        with pytest.raises(BlockingIOError):
            hub.accept()
        asking = harness("doctor", "--network", **online)
        hub.accept()[0].close()

    assert (quiet.returncode, asking.returncode) == (0, 0)
    assert "not contacted" in quiet.stdout
    assert "answers" in asking.stdout


def test_doctor_tells_what_the_machine_has_and_changes_nothing(harness):
    run = harness("doctor")

    assert run.returncode == 0, run.stderr
    for word in ("torch", "hub", "HARNESS_DATA", "store", "slurm", "wandb"):
        assert word in run.stdout
    assert not list(harness.folder.iterdir())


def test_doctor_does_not_mind_what_an_ended_process_left_of_wandb(harness, monkeypatch):
    monkeypatch.setenv("WANDB_SERVICE", f"3-1-unix-{harness.folder}/socket")

    run = harness("doctor")

    assert run.returncode == 0, run.stderr
    assert "WandbService" not in run.stdout + run.stderr


@pytest.mark.parametrize(
    "arguments", [["--cfg", "job"], ["--info", "plugins"], ["plan", "--help"], ["report", "--help"]]
)
def test_usual_flags_work(harness, arguments):
    run = harness(*arguments)

    assert run.returncode == 0, run.stderr
    assert run.stdout
