"""Every published sweep composes and plans, and docs/published.md says how much each one asks for."""

import re

import pandas as pd
import pytest
from composed import compose
from published import REPOSITORIES, ROOT, SWEEPS, asked, cells, command_line, lines

from harness.config.build import cells_of
from harness.engine.spec import describe
from harness.experiment.experiment import flatten
from harness.report.data.targets import read_targets, with_targets

ROW = r"^\| (?:`harness -m \+sweeps=(?=\w)|\*\*(?=all of))(\w[\w ]*).*?\|((?: [\d,]+ \|)+)$"
LINES = dict(re.findall(ROW, (ROOT / "docs" / "published.md").read_text(), re.MULTILINE))
"""The counts of docs/published.md, by sweep."""


def told(name):
    return tuple(int(number.replace(",", "")) for number in LINES[name].split("|") if number.strip())


def test_published_sweeps_are_discovered():
    assert len(SWEEPS) >= 40
    assert all(any(sweep.startswith(f"{repository}_") for sweep in SWEEPS) for repository in REPOSITORIES)


@pytest.mark.slow
@pytest.mark.parametrize("sweep", SWEEPS)
def test_published_sweep_plans_as_many_stages_as_the_documentation_says(sweep):
    assert asked(sweep) == told(sweep)


@pytest.mark.slow
@pytest.mark.parametrize("repository", REPOSITORIES)
def test_sweeps_of_a_repository_together_plan_what_the_documentation_says(repository):
    own = [sweep for sweep in SWEEPS if sweep.startswith(f"{repository}_")]

    assert asked(*own) == told(f"all of {repository}")


@pytest.mark.slow
def test_published_sweep_by_its_file_is_what_is_counted():
    sweep = "antidote_dense_ratio"
    _, *params = command_line(sweep)

    found = cells_of(compose([f"+sweeps={sweep}", *params]))

    assert [cell.stages["harm"].key for cell in found] == [cell.stages["harm"].key for cell in cells(sweep)]


@pytest.mark.slow
def test_documentation_names_no_sweep_that_does_not_exist():
    assert set(LINES) == {name for name, _ in lines()}


@pytest.mark.slow
@pytest.mark.parametrize("group", ["antidote_dense_ratio", "antidote_benign", "antidote_llama3"])
def test_sweep_of_a_reproduction_target_meets_every_target_of_its_group(group):
    # The random control is not part of the family that the sweep replaces.
    wanted = {target.name for target in read_targets() if target.name.startswith(group)} - {"antidote_benign_7"}
    swept = cells(group)
    known = {stage.key: flatten(describe(stage)) for cell in swept for stage in cell.stages.values()}
    told = [
        cell.labels
        | {f"key.{part}": stage.key for part, stage in cell.stages.items()}
        | {f"protocol.{name}": value for name, value in cell.protocol.items()}
        | {"hs": 0.0, "fa": 0.0}
        for cell in swept
    ]

    found = with_targets(pd.DataFrame(told), read_targets(), known.__getitem__)

    assert sorted(found["target"]) == sorted(wanted)


@pytest.mark.parametrize(
    ("sweep", "rows", "ratio", "batch_size", "learning_rates"),
    [
        ("booster_epochs", 5000, 0.2, 5, {1e-5}),
        ("booster_epochs_gsm8k", 5000, 0.2, 5, {1e-4}),
        ("booster_learning_rate", 5000, 0.2, 5, {1e-6, 1e-5, 1e-4}),
        ("booster_vlguard", 5000, 0.2, 5, {1e-4}),
        ("booster_eraser", 5000, None, 5, {1e-4}),
        ("booster_ldifs_agnews", 5000, 0.2, 5, {1e-4}),
        ("booster_ldifs_models", 5000, 0.2, 5, {1e-4}),
        ("booster_ldifs_rho", 5000, 0.2, 5, {1e-4}),
        ("antidote_benign", 5000, 0.0, 5, {1e-3}),
        ("antidote_llama3", 5000, 0.2, 5, {1e-3}),
    ],
)
def test_family_with_settings_of_its_own_has_those_of_its_scripts(sweep, rows, ratio, batch_size, learning_rates):
    swept = cells(sweep)
    budgets = [cell.stages["finetune"].budget for cell in swept]

    assert {cell.stages["poison"].rows for cell in swept} == {rows}
    assert ratio is None or {cell.stages["poison"].ratio for cell in swept} == {ratio}
    assert {budget.batch_size for budget in budgets} == {batch_size}
    assert {budget.learning_rate for budget in budgets} == learning_rates


def strengths(sweep, slot, method):
    """Return the strengths of a method over a sweep, where it occurs."""
    methods = [cell.stages[slot].method for cell in cells(sweep)]
    return {found.rho for found in methods if found is not None and found.name == method}


@pytest.mark.parametrize(
    "sweep",
    [
        "booster_epochs",
        "booster_epochs_gsm8k",
        "booster_learning_rate",
        "booster_learning_rate_gsm8k",
        "booster_eraser",
    ],
)
def test_family_after_antidote_has_other_strengths_than_the_rest_of_the_booster_repository(sweep):
    assert (strengths(sweep, "align", "vaccine"), strengths(sweep, "finetune", "lisa")) == ({2.0}, {1.0})
    assert strengths("booster_poison_ratio", "align", "vaccine") == {5.0}
    assert strengths("booster_poison_ratio", "finetune", "lisa") == {0.01}


def test_safety_and_calibration_rows_of_the_booster_repository_are_two_thousand():
    assert {cell.stages["finetune"].refusal.rows for cell in cells("booster_vlguard")} == {2000}
    assert {cell.stages["repair"].harmful.rows for cell in cells("booster_eraser")} == {2000}


def test_booster_with_vaccine_aligns_on_as_few_rows_as_its_script():
    assert {cell.stages["align"].refusal.rows for cell in cells("booster_vaccine")} == {500}


@pytest.mark.parametrize("sweep", ["antidote_gsm8k", "antidote_benign", "antidote_llama3"])
def test_lisa_is_held_loosely_on_the_word_problems_of_the_antidote_repository(sweep):
    assert strengths(sweep, "finetune", "lisa") == {0.1}


@pytest.mark.slow
def test_benign_cells_of_the_virus_repository_meet_its_targets():
    wanted = {target.name for target in read_targets() if target.name.startswith("virus_benign")}
    swept = [cell for sweep in ("virus_sample_number", "virus_tasks") for cell in cells(sweep)]
    benign = [cell for cell in swept if cell.labels["attack"] == "none"]

    assert len(wanted) == 7
    assert met_by(benign) == wanted
    assert met_by([cell for cell in swept if cell.labels["attack"] != "none"]) == {""}


def met_by(swept):
    """Return the targets that cells meet; empty for one that meets none."""
    known = {stage.key: flatten(describe(stage)) for cell in swept for stage in cell.stages.values()}
    rows = [
        cell.labels
        | cell.swept
        | {f"key.{part}": stage.key for part, stage in cell.stages.items()}
        | {f"protocol.{name}": value for name, value in cell.protocol.items()}
        | {"hs": 0.0, "fa": 0.0}
        for cell in swept
    ]
    return set(with_targets(pd.DataFrame(rows), read_targets(), known.__getitem__)["target"])


def test_rows_of_the_virus_repository_end_with_the_host_and_are_crafted_against_its_guard():
    crafted = [cell.stages["poison"] for cell in cells("virus_lambda")]

    assert {poison.attack.tail for poison in crafted} == {True}
    assert [poison.attack.lamb for poison in crafted] == [0, 0.01, 0.05, 0.1, 1]
    assert [poison.guard and poison.guard.name for poison in crafted] == [None, *["llama_guard2"] * 4]
    assert {poison.rows for poison in crafted} == {500}
