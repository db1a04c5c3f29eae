"""Sweepers that are not ours: a stand-in that optimizes, and Optuna's plugin in an environment of its own."""

import csv
import os
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from product import QUICK, Harness

ROOT = Path(__file__).parents[2]
OPTUNA = ROOT / ".venv-optuna" / "bin" / "python"

STAND_IN = """
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper


@dataclass
class StandInConf:
    _target_: str = "hydra_plugins.stand_in_sweeper.StandIn"


ConfigStore.instance().store(group="hydra/sweeper", name="stand_in", node=StandInConf, provider="stand_in")


class StandIn(Sweeper):
    '''Tries two defenses at once, then the better one at another ratio, and writes what it found where Hydra says.'''

    def setup(self, *, hydra_context, task_function, config):
        self.folder = Path(config.hydra.sweep.dir)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        tried = {}
        for batch in (["defense=sft", "defense=booster"], None):
            names = batch or [min(tried, key=tried.get) + " attack_ratio=p00"]
            jobs = self.launcher.launch([[*arguments, *name.split()] for name in names], initial_job_idx=len(tried))
            tried |= {name: job.return_value for name, job in zip(names, jobs)}
        text = "".join(f"{name}: {value!r}\\n" for name, value in tried.items())
        (self.folder / "found.yaml").write_text(text)
"""


@pytest.fixture
def harness(finished: Harness, tmp_path: Path) -> Harness:
    """The store of the finished sweep, and the stand-in beside it."""
    shutil.copytree(finished.store, tmp_path / "store")
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "stand_in_sweeper.py").write_text(STAND_IN)
    return Harness(tmp_path)


@pytest.mark.slow
def test_optimizing_sweeper_writes_what_it_found_where_hydra_says(harness):
    (before,) = sweeps(harness)

    run = harness("-m", "hydra/sweeper=stand_in", "attack_ratio=p20", *QUICK, PYTHONPATH=str(harness.folder))

    assert run.returncode == 0, run.stderr
    (found,) = (harness.store / "hydra").glob("*/found.yaml")
    assert run.stdout.count(f"the sweeper writes its own output to {found.parent.relative_to(harness.folder)}") == 1
    scores = {(cell["defense"], float(cell["ratio"])): float(cell["hs"]) for cell in rows(harness, before)}
    better = min(("sft", "booster"), key=lambda defense: scores[defense, 0.2])
    assert yaml.safe_load(found.read_text()) == {
        "defense=sft": scores["sft", 0.2],
        "defense=booster": scores["booster", 0.2],
        f"defense={better} attack_ratio=p00": scores[better, 0.0],
    }


@pytest.mark.slow
def test_plan_of_an_optimizing_sweeper_is_that_of_its_first_batch(harness):
    run = harness("plan", "-m", "hydra/sweeper=stand_in", "attack_ratio=p20", *QUICK, PYTHONPATH=str(harness.folder))

    assert run.returncode == 0, run.stderr
    assert run.stdout.count("2 cells") == 1
    assert "this is its first batch" in run.stdout
    assert not (harness.store / "hydra").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("sweeper", "code"), [("stand_in", 0), ("basic", 2)])
def test_batch_of_an_optimizing_sweeper_need_not_vary_what_the_attacker_chooses(harness, sweeper, code):
    attacker = "attacker={space: [finetune.budget.learning_rate]}"

    run = harness("plan", "-m", f"hydra/sweeper={sweeper}", attacker, *QUICK, PYTHONPATH=str(harness.folder))

    assert run.returncode == code, run.stderr
    assert ("`finetune.budget.learning_rate` is not swept" in run.stderr) == (code == 2)


@pytest.mark.slow
def test_optimizing_sweeper_is_told_why_a_cell_has_no_objective(harness):
    refused = ("corpus.shared_prompts=false", "on_invalid=skip")

    run = harness("-m", "hydra/sweeper=stand_in", "attack_ratio=p20", *refused, *QUICK, PYTHONPATH=str(harness.folder))

    assert run.returncode == 1
    assert "A cell has no objective: it was skipped" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.slow
def test_refused_optimizing_sweep_leaves_no_folder(harness):
    run = harness("-m", "hydra/sweeper=stand_in", "seed=x", *QUICK, PYTHONPATH=str(harness.folder))

    assert run.returncode == 2
    assert not (harness.store / "hydra").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("hydra/sweeper=basic seed=0,1", 0, "sbatch"),
        ("hydra/sweeper=stand_in", 2, "a dry run has none; `harness plan` shows its first batch"),
    ],
)
def test_dry_run_of_another_sweeper_leaves_nothing_in_the_store(harness, line, code, said):
    before = files(harness.folder)
    (temporary := harness.folder / "temporary").mkdir()

    run = harness(
        "-m", *line.split(), "cluster=slurm", "cluster.dry_run=true",
        PYTHONPATH=str(harness.folder), TMPDIR=str(temporary),
    )  # fmt: skip

    assert run.returncode == code, run.stderr
    assert said in run.stdout + run.stderr
    assert {path for path in files(harness.folder) if temporary not in path.parents} == before


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts and path.name != "temporary"}


@dataclass(frozen=True)
class WithOptuna(Harness):
    """The harness as it runs where Optuna's plugin is installed."""

    def command(self, *arguments: str) -> list[str]:
        return [str(OPTUNA), "-m", "harness", *arguments]


@pytest.fixture
def optuna(harness: Harness) -> WithOptuna:
    if not OPTUNA.exists():
        missing = f"{OPTUNA.relative_to(ROOT)} is missing; `make optuna-sweeper` installs it"
        pytest.fail(missing) if os.environ.get("HARNESS_CI") else pytest.skip(missing)
    return WithOptuna(harness.folder)


@pytest.mark.slow
def test_optunas_sweeper_finds_the_best_of_its_trials(optuna):
    before, study = sweeps(optuna), optuna.folder / "study.db"

    # Batches of two and of one; the trials share everything up to the fine-tuning.
    run = optuna(
        "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2",
        "hydra.sweeper.sampler.seed=1", f"hydra.sweeper.storage=sqlite:///{study}", "hydra.sweeper.study_name=s",
        "defense=sft", "attack_ratio=p20", "finetune.budget.learning_rate=interval(0.0001,0.005)",
        "objective='hs + 2*fa_loss'", *QUICK,
    )  # fmt: skip

    assert run.returncode == 0, run.stderr
    (results,) = (optuna.store / "hydra").glob("*/optimization_results.yaml")
    found = yaml.safe_load(results.read_text())
    with sqlite3.connect(study) as database:
        trials = dict(
            database.execute(
                "select param_value, value from trials join trial_params using (trial_id) join trial_values "
                "using (trial_id) where state = 'COMPLETE'"
            ).fetchall()
        )
    cells = [cell for sweep in sweeps(optuna) - before for cell in rows(optuna, sweep)]
    assert len(trials) == 3
    assert trials == {
        float(cell["finetune.budget.learning_rate"]): float(cell["hs"]) + 2 * (100 - float(cell["fa"]))
        for cell in cells
    }
    assert found["best_value"] == min(trials.values())
    assert trials[found["best_params"]["finetune.budget.learning_rate"]] == found["best_value"]


def sweeps(harness: Harness) -> set[str]:
    return {path.stem for path in (harness.store / "sweeps").glob("*.json")}


def rows(harness: Harness, sweep: str) -> list[dict[str, str]]:
    return list(csv.DictReader(harness("report", sweep, "--format", "csv").stdout.splitlines()))
