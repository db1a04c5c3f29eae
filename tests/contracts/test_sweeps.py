"""Every published sweep composes and plans, and docs/published.md says how much each one asks for."""

import re

import pandas as pd
import pytest
from published import REPOSITORIES, ROOT, SWEEPS, asked, cells, command_line, lines

from harness.compose import compose
from harness.config import cells_of
from harness.engine.spec import describe
from harness.experiment import flatten
from harness.report.targets import mark, read

ROW = r"^\| (?:`harness -m \+sweeps=(?=\w)|\*\*(?=all of))(\w[\w ]*).*?\|((?: [\d,]+ \|)+)$"
LINES = dict(re.findall(ROW, (ROOT / "docs" / "published.md").read_text(), re.MULTILINE))
"""The counts of docs/published.md, by sweep."""


def told(name):
    return tuple(int(number.replace(",", "")) for number in LINES[name].split("|") if number.strip())


def test_published_sweeps_are_discovered():
    assert len(SWEEPS) >= 40
    assert all(any(sweep.startswith(f"{repository}_") for sweep in SWEEPS) for repository in REPOSITORIES)


@pytest.mark.parametrize("sweep", SWEEPS)
def test_published_sweep_plans_as_many_stages_as_the_documentation_says(sweep):
    assert asked(sweep) == told(sweep)


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_sweeps_of_a_repository_together_plan_what_the_documentation_says(repository):
    own = [sweep for sweep in SWEEPS if sweep.startswith(f"{repository}_")]

    assert asked(*own) == told(f"all of {repository}")


def test_published_sweep_by_its_file_is_what_is_counted():
    sweep = "antidote_dense_ratio"
    _, *params = command_line(sweep)

    found = cells_of(compose([f"+sweeps={sweep}", *params]))

    assert [cell.stages["harm"].key for cell in found] == [cell.stages["harm"].key for cell in cells()[sweep]]


def test_documentation_names_no_sweep_that_does_not_exist():
    assert set(LINES) == {name for name, _ in lines()}


@pytest.mark.parametrize("group", ["antidote_dense_ratio", "antidote_benign", "antidote_llama3"])
def test_sweep_of_a_reproduction_target_meets_every_target_of_its_group(group):
    # The random control is not part of the family that the sweep replaces.
    wanted = {target.name for target in read() if target.name.startswith(group)} - {"antidote_benign_7"}
    swept = cells()[group]
    known = {stage.key: flatten(describe(stage)) for cell in swept for stage in cell.stages.values()}
    told = [
        cell.labels
        | {f"key.{part}": stage.key for part, stage in cell.stages.items()}
        | {f"protocol.{name}": value for name, value in cell.protocol.items()}
        | {"hs": 0.0, "fa": 0.0}
        for cell in swept
    ]

    found = mark(pd.DataFrame(told), read(), known.__getitem__)

    assert sorted(found["target"]) == sorted(wanted)
