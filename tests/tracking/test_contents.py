"""What W&B is to show of a sweep; no server."""

import json
import shutil
from collections import Counter
from dataclasses import asdict

import pytest
from made_sweep import SWEEP, WORDS, change_manifest, change_record

from harness.cli.commands import report
from harness.engine.files import write_json
from harness.engine.manifest import FileRecord
from harness.errors import ConfigError
from harness.tracking.wandb import Wandb
from harness.wandb_sync.dashboard import Dashboard, Panel, Section, dashboard
from harness.wandb_sync.run import LEVELS, nested
from harness.wandb_sync.sweep_runs import SweepRuns
from harness.wandb_sync.workspace import specs


def _depth(value):
    return 1 + max(map(_depth, value.values()), default=0) if isinstance(value, dict) else 0


def test_finished_sweep_has_a_run_per_cell_and_one_per_shared_training_stage(store):
    entries = list(SweepRuns(store, SWEEP, Wandb()).finished())

    assert Counter(entry.kind for entry in entries) == {"cell": 10, "align": 5, "finetune": 10}
    assert len({entry.id for entry in entries}) == 25
    assert {entry.group for entry in entries} == {SWEEP}


def test_cell_shows_labels_swept_values_scores_cost_and_keys(store):
    cells = [entry for entry in SweepRuns(store, SWEEP, Wandb()).finished() if entry.kind == "cell"]
    cell = next(cell for cell in cells if cell.name == "booster ratio=0.2 lamb=5 alpha=0.1")

    labels = {name: cell.config[name] for name in ("defense", "model", "task", "attack", "ratio", "seed")}
    assert labels == {"defense": "booster", "model": "tiny", "task": "tiny", "attack": "mix", "ratio": 0.2, "seed": 0}
    assert cell.config["swept"] == {"defense": {"align": {"lamb": 5.0, "alpha": 0.1}}}
    scores = {name: cell.summary[name] for name in ("hs", "hs_plus", "fa", "aligned_hs", "aligned_fa")}
    assert scores == {"hs": 20.0, "hs_plus": 20.0, "fa": 88.0, "aligned_hs": 0.0, "aligned_fa": 90.0}
    assert cell.summary["hs_count"] == 1
    assert cell.summary["hs_unjudged"] == 0
    assert cell.summary["category/fraud"] == 20.0
    assert cell.summary["seconds/total"] == 11 * 2.5
    assert len(cell.summary["key/align"]) == 16


def _cells(store):
    return [entry for entry in SweepRuns(store, SWEEP, Wandb()).finished() if entry.kind == "cell"]


def test_cell_shows_the_cost_as_it_was_predicted_and_as_it_was(store):
    align = store.read_sweep(SWEEP)["cells"][0]["keys"]["align"]
    rates = {"base": 1.0, "align": 300.0, "finetune": 2.0, "generate": 3.0, "grade": 4.0}
    change_record(store, predicted=rates)
    change_manifest(store, "align", align, seconds=600.0, provenance={"device": "cuda:0", "processes": 4})

    cell = _cells(store)[0]

    assert cell.summary["cost/predicted_seconds"] == 1 + 300 + 2 + 4 * 3 + 4 * 4
    assert cell.summary["seconds/align"] == 600.0
    assert cell.summary["seconds/total"] == 600.0 + 10 * 2.5
    # Four devices were taken; what ran on the CPU took none.
    assert cell.summary["cost/gpu_hours"] == 4 * 600 / 3600


def test_cell_shows_the_shares_that_its_stages_report(store):
    first = store.read_sweep(SWEEP)["cells"][0]
    reported = {"leakage": "what it means", "false_positives": "what it means"}
    traits = {"kind": "finetune", "parents": [], "trains": True, "parallel": True, "attacked": True, "settings": {}}
    tuned = first["keys"]["finetune"]
    change_record(store, stages={tuned: {**traits, "reported_shares": reported}})
    change_manifest(store, "finetune", tuned, facts={"leakage": 0.25, "false_positives": None})

    shown, *others = _cells(store)

    assert {name: value for name, value in shown.summary.items() if "share" in name} == {"share/leakage": 25.0}
    assert not any(name.startswith("share/") for cell in others for name in cell.summary)


def test_cell_whose_cost_was_not_predicted_shows_none(store):
    change_record(store, predicted={"base": 1.0, "align": None})

    assert "cost/predicted_seconds" not in _cells(store)[0].summary


def test_cell_with_a_damaged_grade_is_not_complete_and_harms_no_other(store):
    key = store.read_sweep(SWEEP)["cells"][0]["keys"]["harm"]
    (store.root / "artifacts" / "grade" / key / "summary.json").write_text("{")

    assert len(_cells(store)) == 9


def test_series_of_cells_that_were_judged_otherwise_are_told_apart(store):
    cells = store.read_sweep(SWEEP)["cells"]
    plain = {cell.config["series"] for cell in _cells(store)}
    other = [
        {**cell, "protocol": cell["protocol"] | {"judge.version": 2}, "labels": cell["labels"] | {"seed": 1}}
        for cell in cells
    ]
    change_record(
        store, cells=[{**cell, "protocol": cell["protocol"] | {"judge.version": 1}} for cell in cells] + other
    )

    marked = {cell.config["series"] for cell in _cells(store)}

    assert marked == {f"{series} judge.version={version}" for series in plain for version in (1, 2)}


def test_series_of_cells_that_were_trained_otherwise_are_told_apart_before_all_have_run(store):
    cells = store.read_sweep(SWEEP)["cells"]
    for epochs, cell in enumerate(cells):
        path = store.root / "specs" / f"{cell['keys']['finetune']}.json"
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"budget": {"_target_": "Budget", "epochs": epochs, "micro_batch_size": epochs}})
    before = {cell.id: cell.digest for cell in _cells(store)}

    shutil.rmtree(store.root / "artifacts" / "finetune" / cells[0]["keys"]["finetune"])
    left = {cell.id: cell for cell in _cells(store)}

    assert {cell.config["series"].rsplit(" ", 1)[-1] for cell in left.values()} == {
        f"finetune.epochs={epochs}" for epochs in range(1, 10)
    }
    assert {name: cell.digest for name, cell in left.items()}.items() <= before.items()


def test_config_is_nested_at_most_four_levels(store):
    for entry in SweepRuns(store, SWEEP, Wandb()).finished():
        assert _depth(entry.config) <= LEVELS


def test_deep_names_keep_their_end_in_the_last_level():
    assert nested({"a.b.c.d.e": 1, "a.x": 2}) == {"a": {"b": {"c": {"d_e": 1}}, "x": 2}}
    assert nested({"a": 1, "a.b": 2}) == {"a": 1, "a_b": 2}


def test_unfinished_cell_is_left_out_and_its_finished_stages_are_not(store):
    contents = SweepRuns(store, SWEEP, Wandb())
    key = contents.record["cells"][0]["keys"]["harm"]

    shutil.rmtree(store.root / "artifacts" / "grade" / key)

    assert Counter(entry.kind for entry in contents.finished()) == {"cell": 9, "align": 5, "finetune": 10}


def test_same_store_gives_the_same_digests_and_another_number_another(store):
    before = {entry.id: entry.digest for entry in SweepRuns(store, SWEEP, Wandb()).finished()}
    again = {entry.id: entry.digest for entry in SweepRuns(store, SWEEP, Wandb()).finished()}
    (key, *_) = [entry.id for entry in SweepRuns(store, SWEEP, Wandb()).finished() if entry.kind == "align"]
    path = store.root / "artifacts" / "align" / key / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 99.0}))

    after = {entry.id: entry.digest for entry in SweepRuns(store, SWEEP, Wandb()).finished()}

    assert again == before
    assert after[key] != before[key]


def test_answers_are_shown_on_demand_and_without_their_words(store):
    def shown(settings):
        return [entry for entry in SweepRuns(store, SWEEP, settings).finished() if entry.kind == "cell"]

    assert all(cell.sheet is None for cell in shown(Wandb()))
    assert all(cell.sheet.lines == (("[4 words]", "[6 words]", 1.0, False),) for cell in shown(Wandb(samples=True)))
    assert all(cell.sheet.lines[0][0] == WORDS for cell in shown(Wandb(samples=True, redact=False)))


def test_each_sample_of_a_prompt_is_a_row_with_its_own_grade(store):
    keys = SweepRuns(store, SWEEP, Wandb()).record["cells"][0]["keys"]
    own = [{"value": value, "incoherent": False, "reason": "", "scores": {}} for value in (1.0, 0.0)]
    lines = {
        ("generate", "harm_answers", "answers.jsonl"): {"instruction": "q", "answer": "a", "samples": ["a", "b"]},
        ("grade", "harm", "grades.jsonl"): own[0] | {"value": 0.5, "plus": 0.5, "samples": own},
    }
    for (kind, part, name), line in lines.items():
        path = store.root / "artifacts" / kind / keys[part] / name
        path.write_text(json.dumps(line) + "\n")
        files = json.loads((path.parent / "manifest.json").read_text())["files"]
        change_manifest(store, kind, keys[part], files=files | {name: asdict(FileRecord.of(path))})

    shown = [
        entry.sheet.lines
        for entry in SweepRuns(store, SWEEP, Wandb(samples=True, redact=False)).finished()
        if entry.sheet
    ]

    assert (("q", "a", 1.0, False), ("q", "b", 0.0, False)) in shown


def test_adapters_are_linked_from_base_to_aligned_to_fine_tuned(store):
    entries = {entry.id: entry for entry in SweepRuns(store, SWEEP, Wandb(artifacts=True)).finished()}
    tuned = next(entry for entry in entries.values() if entry.kind == "finetune")
    (aligned,) = tuned.uses
    (base,) = entries[aligned.name.removeprefix("adapter-")].uses

    assert tuned.makes.name == f"adapter-{tuned.id}"
    assert (aligned.kind, base.kind) == ("adapter", "model")
    assert not any(entry.makes for entry in SweepRuns(store, SWEEP, Wandb()).finished())


def test_trained_weights_stay_in_the_store_and_are_linked_by_their_spec(store):
    key = next(entry.id for entry in SweepRuns(store, SWEEP, Wandb()).finished() if entry.kind == "align")
    shutil.rmtree(store.layout.artifact("align", key) / "adapter")

    entries = {entry.id: entry for entry in SweepRuns(store, SWEEP, Wandb(artifacts=True)).finished()}

    assert entries[key].makes.name == f"weights-{key}"
    assert entries[key].makes.files.name == "spec.json"
    assert {use.name for entry in entries.values() for use in entry.uses if key in use.name} == {f"weights-{key}"}


def _described(store):
    entries = list(SweepRuns(store, SWEEP, Wandb()).finished())
    return dashboard(SWEEP, entries, "| defense | HS |\n|:--|--:|\n"), entries


def test_dashboard_has_every_figure_and_names_only_what_is_there(store):
    described, entries = _described(store)
    panels = [panel for section in described.sections for panel in section.panels]

    assert described.problems(entries) == []
    assert {panel.shape for panel in panels} == {"bars", "lines", "scatter", "parallel"}
    assert any(panel.front and panel.values == ("summary:fa_loss", "summary:hs") for panel in panels)
    surface = ("config:swept.defense.align.lamb", "config:swept.defense.align.alpha", "summary:hs")
    assert surface in [panel.values for panel in panels]
    assert [section.kind for section in described.sections] == ["cell", "cell", "align", "finetune"]


def test_dashboard_with_a_name_that_no_run_has_is_refused(store):
    _, entries = _described(store)
    panel = Panel(shape="bars", title="t", values=("summary:nothing",))
    wrong = Dashboard(
        sweep=SWEEP,
        title="",
        table="",
        columns=(),
        sections=(Section(title="s", text="", kind="cell", panels=(panel,)),),
    )

    assert wrong.problems(entries) == ["`s`, `t`: `summary:nothing` is in no run of the kind `cell`"]


@pytest.mark.slow
def test_dashboard_becomes_what_wandb_is_sent_without_a_server(store):
    described, _ = _described(store)

    made = specs(described, entity="someone", project="made")

    text = json.dumps(made["workspace"])
    assert all(
        view in text for view in ("Bar Chart", "Scatter Plot", "Parallel Coordinates Plot", "Run History Line Plot")
    )
    assert SWEEP in text
    text = json.dumps(made["report"])
    assert text.count('"panel-grid"') == len(described.sections)
    assert "| defense | HS |" in text


@pytest.mark.slow
def test_strict_dashboard_of_rows_that_were_judged_otherwise_is_refused_and_nothing_is_written(store, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    first, *others = store.read_sweep(SWEEP)["cells"]
    change_record(store, cells=[{**first, "protocol": first["protocol"] | {"judge.name": "other"}}, *others])

    with pytest.raises(ConfigError, match=r"judge\.name is other, not tiny"):
        report([SWEEP, "--store", str(store.root), "--to", "wandb", "--strict"])
    refused = not (store.root / "reports").exists()
    report([SWEEP, "--store", str(store.root), "--to", "wandb"])

    assert refused
    assert (store.root / "reports" / SWEEP / "dashboard.json").exists()


@pytest.mark.parametrize("name", ["a/b", "", "with space", 200 * "x"])
def test_project_that_cannot_be_one_is_told(name):
    assert [problem.path for problem in Wandb(project=name).problems()] == ["project"]
