"""The mirror against a real W&B-compatible server, whole and in trouble."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from passthrough import answering, hanging
from product import Harness, shared_base

from harness.errors import TrackingError
from harness.tracking.wandb import Wandb
from harness.wandb_sync import server
from harness.wandb_sync.client import Client, reset
from harness.wandb_sync.names import truncated
from harness.wandb_sync.publish import publish_dashboard
from harness.wandb_sync.run import RunRecord
from harness.wandb_sync.sweep_runs import SweepRuns
from harness.wandb_sync.sync import sync

SWEEP = "made-00000001"
RUNS = 10
QUICK = (
    "model.source.steps=250",
    "align.rows=24",
    "align.budget.epochs=1",
    "finetune.rows=40",
    "finetune.budget.epochs=1",
    "evaluation.rows=4",
    "task.test_rows=4",
    "cluster.threads=1",
    "over_refusal=none",
)
"""A cell that takes seconds, on the base model that the end-to-end tests share."""


@pytest.fixture
def harness(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Harness:
    shutil.copytree(shared_base(tmp_path_factory), tmp_path / "store")
    return Harness(tmp_path)


def _wanted(entry):
    curves = {}
    for row in entry.rows(after=-1):
        for name, value in row.items():
            curves.setdefault(name, []).append((row["step"], float(value)))
    return curves


def _assert_shown(shown, store, settings):
    """Every run and every value is there."""
    entries = {entry.id: entry for entry in SweepRuns(store, SWEEP, settings).finished()}
    assert shown.keys() == entries.keys()
    for name, entry in entries.items():
        run = shown[name]
        assert (run["state"], run["display_name"], run["tags"]) == ("finished", entry.name, list(entry.tags))
        assert {key: value for key, value in run["summary"].items() if key in entry.summary} == dict(entry.summary)
        assert {key: run["config"][key]["value"] for key in entry.config} == dict(entry.config)
        assert {key: sorted(set(points)) for key, points in run["curves"].items()} == _wanted(entry)


def test_sync_brings_every_run_and_value_and_a_second_one_changes_nothing(small, server, place):
    settings = Wandb(project="whole")

    first = sync(small.root, SWEEP, settings)
    shown = server.runs("whole")
    asked = len(place.requests)
    second = sync(small.root, SWEEP, settings)

    assert (first.sent, first.current, first.missing, first.unfinished) == (RUNS, 0, 0, 0)
    _assert_shown(shown, small, settings)
    entries = {entry.id: entry for entry in SweepRuns(small, SWEEP, settings).finished()}
    assert {name: run["curves"] for name, run in shown.items()} == {name: _wanted(entries[name]) for name in shown}
    assert (second.sent, second.current, second.missing) == (0, RUNS, 0)
    # To the letter, times of updates and heartbeats included.
    assert server.runs("whole") == shown
    assert {path for _, path in place.requests[asked:]} == {"/graphql"}


def test_sync_after_the_server_was_killed_completes(small, server, place):
    settings = Wandb(project="killed")
    killed = []

    def kill_after_some(handler):
        streamed = [path for _, path in place.requests if "file_stream" in path]
        if len(streamed) > 8 and not killed:
            killed.append(True)
            server.kill()
        return False

    place.fault = kill_after_some
    with pytest.raises(TrackingError, match="does not answer"):
        sync(small.root, SWEEP, settings)
    place.fault = None
    server.start()
    before = sum(run["state"] == "finished" for run in server.runs("killed").values())
    completed = sync(small.root, SWEEP, settings)
    shown = server.runs("killed")

    assert killed
    assert before < RUNS
    assert (completed.missing, completed.sent + completed.current) == (0, RUNS)
    _assert_shown(shown, small, settings)
    assert sync(small.root, SWEEP, settings).sent == 0
    assert server.runs("killed") == shown


def test_run_with_names_that_are_too_long_is_taken(server, place, tmp_path):
    said = "booster instruction=" + "word " * 40
    entry = RunRecord(id="a1", name=said, kind="cell", group="g" * 200, tags=("t" * 70,), config={})

    Client(mode="online", entity="default", project="long", folder=tmp_path).send(entry, after=-1)
    reset()

    (run,) = server.runs("long").values()
    assert run["display_name"] == truncated(said)
    assert (len(run["display_name"]), [len(tag) for tag in run["tags"]]) == (128, [64])


@pytest.mark.parametrize(
    "trouble",
    [
        (answering(500), "answers 500"),
        (answering(429, Retry_After="1"), "answers 429"),
        (answering(401), "Log in again"),
        (hanging(2.0), "does not answer"),
    ],
    ids=["500", "429", "wrong key", "hangs"],
)
def test_sync_with_a_server_in_trouble_says_so_at_once(small, place, monkeypatch, trouble):
    monkeypatch.setattr(server, "TIMEOUT_SECONDS", 1.0)
    settings = Wandb(project="trouble")
    place.fault, said = trouble

    with pytest.raises(TrackingError, match=said):
        sync(small.root, SWEEP, settings)


def test_sync_while_streams_are_refused_reports_what_is_missing_and_completes_afterwards(small, server, place):
    settings = Wandb(project="refused")
    place.fault = answering(500, only="file_stream")

    refused = sync(small.root, SWEEP, settings)
    place.fault = None
    completed = sync(small.root, SWEEP, settings)

    assert refused.missing == RUNS
    assert refused.reason
    assert completed.missing == 0
    _assert_shown(server.runs("refused"), small, settings)


def test_sync_without_a_key_says_how_to_log_in(small, place, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")

    with pytest.raises(TrackingError, match="Set WANDB_API_KEY, or run `wandb login`"):
        sync(small.root, SWEEP, Wandb())


def test_sync_finds_the_key_in_netrc(small, place, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password from-netrc\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    assert server.login("http://127.0.0.1:1") == "from-netrc"


def test_disabled_sync_sends_nothing(small, place, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")

    with pytest.raises(TrackingError, match="disabled"):
        sync(small.root, SWEEP, Wandb())
    assert place.requests == []


def test_offline_sync_writes_files_that_wandb_sends(small, server, place, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = Wandb(project="offline")

    written = sync(small.root, SWEEP, settings)
    asked = len(place.requests)
    folders = sorted(Path(written.destination).glob("offline-run-*"))
    sent = subprocess.run(
        [Path(sys.executable).parent / "wandb", "sync", *folders],
        cwd=small.root,
        env=os.environ | {"WANDB_MODE": "online"}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip

    assert asked == 0
    assert len(folders) == RUNS
    assert sent.returncode == 0, sent.stdout + sent.stderr
    _assert_shown(server.runs("offline"), small, settings)


def test_artifacts_are_sent_with_their_lineage(small, place):
    sync(small.root, SWEEP, Wandb(project="adapters", artifacts=True))

    def inputs(operation):
        return [query["variables"]["input"] for query in place.queries if f"mutation {operation} (" in query["query"]]

    entries = [entry for entry in SweepRuns(small, SWEEP, Wandb(artifacts=True)).finished() if entry.makes]
    sent = {(given["runName"], given["artifactCollectionName"]) for given in inputs("CreateArtifact")}
    # What a run started from is sent without its name, and linked to it afterwards.
    started_from = {(None, parcel.name) for entry in entries for parcel in entry.uses}
    assert sent == started_from | {(entry.id, entry.makes.name) for entry in entries}
    assert {name.split("-")[0] for _, name in started_from} == {"base", "adapter"}
    assert {given["runName"] for given in inputs("UseArtifact")} == {entry.id for entry in entries}


def test_report_to_wandb_is_saved_once_and_then_replaced(small, place):
    settings = Wandb(project="shown")
    place.project = "shown"
    sync(small.root, SWEEP, settings)

    first = publish_dashboard(small.root, SWEEP, settings)
    again = publish_dashboard(small.root, SWEEP, settings)

    assert first.reason == again.reason == ""
    assert len(first.addresses) == 2
    assert [view["type"] for view in place.views] == 2 * ["project-view", "runs"]
    workspace, report = (json.loads(view["spec"]) for view in place.views[:2])
    assert "Pareto" in json.dumps(report)
    assert "Parallel Coordinates Plot" in json.dumps(workspace)
    assert place.views[2]["name"] == place.views[0]["name"]
    assert place.views[3]["id"] is not None


def test_run_is_mirrored_while_it_runs_and_the_key_is_nowhere_in_the_store(server, place, harness):
    arguments = ("-m", "defense=sft,booster", *QUICK, "tracker=wandb", "tracker.project=live")

    ran = harness(*arguments)
    shown = server.runs("live")
    synced = harness("sync")

    assert ran.returncode == 0, ran.stderr
    assert "W&B: all 6 runs are uploaded" in ran.stdout
    assert {run["state"] for run in shown.values()} == {"finished"}
    assert all("loss" in run["curves"] for run in shown.values() if run["config"]["kind"]["value"] != "cell")
    assert "0 runs uploaded, 6 up to date" in synced.stdout
    assert server.runs("live") == shown
    key = os.environ["WANDB_API_KEY"].encode()
    assert not [path for path in harness.store.rglob("*") if path.is_file() and key in path.read_bytes()]


def test_sweep_that_was_run_offline_is_sent_by_sync(server, place, harness, monkeypatch):
    # Keys of its own: this server knows a run by its id alone, in whatever project it came first.
    chosen = ("seed=7", "tracker=wandb", "tracker.project=late", "tracker.mode=offline")
    ran = harness(*QUICK, *chosen)
    with monkeypatch.context() as here:
        here.setenv("WANDB_MODE", "offline")
        written = harness("sync")
    synced = harness("sync")

    assert "nothing was uploaded" in ran.stdout
    assert "runs written, none uploaded" in written.stdout
    assert "runs uploaded, 0 up to date" in synced.stdout
    assert len(server.runs("late")) == int(synced.stdout.split()[0])


def test_run_with_a_server_that_hangs_is_complete_and_names_the_way_out(place, harness):
    place.fault = hanging(60.0)
    began = time.monotonic()

    ran = harness(*QUICK, "tracker=wandb")

    assert ran.returncode == 0, ran.stderr
    assert "executed" in ran.stdout
    assert "harness sync" in ran.stdout
    attempts = (harness.store / "attempts").glob("*.jsonl")
    assert {json.loads(line)["outcome"] for path in attempts for line in path.read_text().splitlines()} == {"executed"}
    assert time.monotonic() - began < 280


def test_offline_run_asks_nobody(place, harness):
    ran = harness(*QUICK, "tracker=wandb", "tracker.mode=offline")

    assert ran.returncode == 0, ran.stderr
    assert "W&B is offline: nothing was uploaded" in ran.stdout
    assert place.requests == []
