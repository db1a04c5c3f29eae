"""Several sweeps reported as one."""

import csv
import io
import re

import pytest
from fabricated import Fabricator

from harness.cli.commands import report as command
from harness.errors import ConfigError
from harness.report import report


@pytest.fixture
def maker(tmp_path):
    return Fabricator(tmp_path / "store", prompts=60, answers=40)


def write(maker, name, cells, **more):
    record = {"id": name, "title": name.partition("-")[0], "argv": ["harness", "-m", name], "cells": cells}
    maker.store.write_sweep(name, record | {"created": "2026-01-01T00:00:00+00:00", **more})


def test_seeds_that_were_run_later_belong_to_the_same_condition(maker):
    cells = [maker.cell(defense, 0.2, seed, {}) for defense in ("sft", "vaccine") for seed in range(4)]
    early = [cell for cell in cells if cell["labels"]["seed"] < 2]
    write(maker, "one-1", early)
    write(maker, "two-2", [cell for cell in cells if cell["labels"]["seed"] > 0])
    write(maker, "all-3", cells)

    joined, whole = (report(maker.store.root, names, "md") for names in (["one", "two"], ["all"]))

    assert joined == whole
    assert joined != report(maker.store.root, ["one"], "md")
    rows = list(csv.DictReader(io.StringIO(report(maker.store.root, ["one", "two"], "csv"))))
    assert len(rows) == 8, "seed 1 is in both sweeps, and counts once"


def test_page_names_every_sweep_and_command(maker):
    write(maker, "one-1", [maker.cell("sft", 0.2, 0, {})])
    write(maker, "two-2", [maker.cell("vaccine", 0.2, 0, {})])

    text = report(maker.store.root, ["one-1", "two-2"], "html")

    assert re.search(r"one-1 \+ two-2</code>", text)
    assert "harness -m one-1" in text
    assert "harness -m two-2" in text


def test_sweep_that_is_named_twice_counts_once(maker):
    write(maker, "one-1", [maker.cell("sft", 0.2, 0, {})])

    assert report(maker.store.root, ["one-1", "one"], "html") == report(maker.store.root, ["one-1"], "html")


def test_different_attackers_are_refused(maker):
    write(maker, "one-1", [maker.cell("sft", 0.2, 0, {})])
    write(maker, "two-2", [maker.cell("sft", 0.2, 1, {})], attacker={"space": ["seed"], "utility_loss": 5.0})

    with pytest.raises(ConfigError, match="`one-1` and `two-2` do not declare the same `attacker`"):
        report(maker.store.root, ["one", "two"], "md")


def test_wandb_takes_one_sweep(maker):
    with pytest.raises(ConfigError, match="`--to wandb` takes one sweep"):
        command(["one", "two", "--store", str(maker.store.root), "--to", "wandb"])


def table_of(maker, *names):
    """Return the rows of the first table, by their first column, as columns and texts."""
    lines = [line for line in report(maker.store.root, names, "md").splitlines() if line.startswith("|")]
    head, _, *rows = ([part.strip() for part in line.strip("|").split("|")] for line in lines)
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def test_order_in_which_sweeps_are_named_does_not_matter(maker):
    cells = {(d, r, s): maker.cell(d, r, s, {}) for d in ("sft", "vaccine") for r in (0.0, 0.2) for s in range(3)}
    first = [at for at in cells if at[1] == 0.0 and at[2] > 0]
    write(maker, "one-1", [cells[at] for at in first])
    write(maker, "two-2", [cell for at, cell in cells.items() if at not in first])
    write(maker, "all-3", list(cells.values()))

    whole = table_of(maker, "all")

    assert whole["sft"]["HS average"] != "-"
    assert table_of(maker, "one", "two") == table_of(maker, "two", "one") == whole


def test_aligned_score_is_that_of_all_seeds_of_the_row(maker):
    cells = {(d, r, s): maker.cell(d, r, s, {}) for d in ("sft", "vaccine") for r in (0.0, 0.2) for s in range(3)}
    write(maker, "one-1", [cell for (_, ratio, seed), cell in cells.items() if ratio or not seed])
    write(maker, "all-2", list(cells.values()))

    begun, whole = table_of(maker, "one"), table_of(maker, "all")

    assert "[" in whole["sft"]["HS aligned"]
    for defense in ("sft", "vaccine"):
        assert begun[defense]["HS aligned"] == whole[defense]["HS aligned"]


@pytest.mark.parametrize("format", ["md", "latex"])
def test_table_says_how_many_seeds_it_is_of(maker, format):
    cells = [maker.cell(defense, 0.2, seed, {}) for defense in ("sft", "vaccine") for seed in range(3)]
    write(maker, "all-1", cells)
    write(maker, "begun-2", cells[:-1])

    assert "Seeds: 3. p is" in report(maker.store.root, ["all"], format)
    assert "Seeds: 3; vaccine at p=0.2: 2. p is" in report(maker.store.root, ["begun"], format)


def test_setting_that_changes_along_with_the_ratio_is_no_alias_of_it(maker):
    rate = "finetune.budget.learning_rate"
    write(maker, "one-1", [maker.cell("sft", 0.1, seed, {rate: 1e-3}) for seed in range(2)])
    write(maker, "two-2", [maker.cell("sft", 0.2, seed, {rate: 1e-5}) for seed in range(2)])
    write(maker, "same-3", [maker.cell("sft", r, s, {"attack.ratio": r}) for r in (0.1, 0.2) for s in range(2)])

    apart, same = table_of(maker, "one", "two"), table_of(maker, "same")

    assert list(apart) == ["sft (learning_rate 0.001)", "sft (learning_rate 1e-05)"]
    assert not any("average" in column for row in apart.values() for column in row)
    assert list(same) == ["sft"]
    assert same["sft"]["HS average"] != "-"
