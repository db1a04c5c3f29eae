"""A stage of which nothing can be read: it is named, and harms no other column or row."""

import csv
import io
import json

import pytest
from fabricated import Fabricator

from harness.report.output.formats import render
from harness.report.stats.results import load_results


@pytest.mark.parametrize("damage", ["cut", "empty", "a folder", "no mapping", "a dead link"])
def test_stage_whose_manifest_cannot_be_read_is_named_and_leaves_whole_numbers_whole(tmp_path, damage):
    drawn = Fabricator(tmp_path / "store", prompts=10, answers=10, categories=False)
    cells = [drawn.cell("booster", ratio, seed, {"defense.align.steps": 3}) for ratio in (0.0, 0.1) for seed in (0, 1)]
    cells += [drawn.cell("sft", 0.1, 0, {})]
    record = drawn.sweep(cells)
    before = csv_of(drawn.store, record)
    key = cells[0]["keys"]["finetune"]
    manifest = drawn.store.root / "artifacts" / "finetune" / key / "manifest.json"
    content = manifest.read_text()
    manifest.unlink()
    if damage == "a folder":
        manifest.mkdir()
    elif damage == "a dead link":
        manifest.symlink_to("nowhere")
    else:
        manifest.write_text({"cut": content[:100], "empty": "", "no mapping": "[]"}[damage])

    after, plain = csv_of(drawn.store, record), json.loads(render(load_results(drawn.store, record), "json"))

    assert after[0]["notes"] == (f"the manifest of finetune {key} cannot be read: its cost and provenance are unknown")
    assert [row["notes"] for row in after[1:]] == [""] * 4
    assert [row["hs"] for row in after] == [row["hs"] for row in before]
    assert [row["protocol.finetune.processes"] for row in after] == ["", "1", "1", "1", "1"]
    assert [row["defense.align.steps"] for row in after] == ["3", "3", "3", "3", ""]
    for table in (plain["rows"], plain["table"]):
        steps = [row["defense.align.steps"] for row in table]
        assert {(type(found), found) for found in steps} == {(int, 3), (type(None), None)}


def test_whole_numbers_of_any_size_stay_whole_beside_a_cell_without_one(tmp_path):
    drawn = Fabricator(tmp_path / "store", prompts=10, answers=10, categories=False)
    sizes = {"booster": 2**53 + 1, "vaccine": 2**70}
    cells = [drawn.cell(defense, 0.1, 0, {"size": size}) for defense, size in sizes.items()]

    rows = csv_of(drawn.store, drawn.sweep([cells[0], drawn.cell("sft", 0.1, 0, {})]))
    larger = csv_of(drawn.store, drawn.sweep([cells[1], drawn.cell("sft", 0.1, 0, {})]))

    assert [row["size"] for row in rows] == [str(2**53 + 1), ""]
    assert [row["size"] for row in larger] == [str(2**70), ""]


def csv_of(store, record):
    return list(csv.DictReader(io.StringIO(render(load_results(store, record), "csv"))))
