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
