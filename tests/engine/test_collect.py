"""Collecting: what no sweep names goes, what anybody needs stays."""

import os
import time
from pathlib import Path

import pytest
from toys import Number, run

from harness.engine.claim import Claims
from harness.engine.gc import find_garbage, remove

DAY = 86400.0


def aged(folder, days):
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (time.time() - days * DAY,) * 2)


@pytest.fixture
def stages(root, store):
    """Two finished stages, a week old."""
    both = [Number(value=1.0), Number(value=2.0)]
    run(root, both)
    for folder in (*store.root.glob("artifacts/*/*"), *store.root.glob("work/*")):
        aged(folder, 7)
    return both


def found(store, needed, days):
    return {(garbage.what, garbage.path) for garbage in find_garbage(store, needed, seconds=days * DAY)}


def test_artifact_and_work_folder_of_an_unnamed_key_can_go(store, stages):
    kept, other = stages

    assert found(store, {kept.key}, 1) == {("artifact", store.folder(other)), ("work", store.work(other.key))}


def test_what_was_touched_lately_stays(store, stages):
    kept, other = stages
    assert not found(store, {kept.key}, 8)

    (store.work(other.key) / "checkpoint").write_text("new")

    assert found(store, {kept.key}, 1) == {("artifact", store.folder(other))}


def test_empty_folder_has_the_age_of_its_own(store, stages):
    folder = store.root / "work" / "f"
    folder.mkdir()

    assert ("work", folder) not in found(store, set(), 1)
    aged(folder, 7)
    assert ("work", folder) in found(store, set(), 1)


def test_damaged_artifact_that_lies_aside_can_go_though_its_key_is_needed(store, stages):
    kept, other = stages
    aside = store.set_aside(kept)

    assert found(store, {kept.key, other.key}, 1) == {("damaged", aside)}


def test_size_is_that_of_the_files(store, stages):
    kept, _ = stages

    (garbage,) = (one for one in find_garbage(store, {stages[1].key}, seconds=DAY) if one.what == "artifact")

    assert garbage.size == sum(path.stat().st_size for path in store.folder(kept).rglob("*") if path.is_file())


def test_removed_artifact_is_gone_and_its_stage_runs_again(root, store, stages):
    kept, other = stages
    for garbage in list(find_garbage(store, {kept.key}, seconds=DAY)):
        remove(store, garbage)

    assert store.has(kept)
    assert not store.has(other)
    assert not list((store.root / "damaged").iterdir())
    assert run(root, stages).executed == (other.key,)


def test_checkpoints_of_a_stored_stage_can_go_and_its_log_stays(root, store, stages):
    kept, other = stages
    unfinished = Number(value=3.0)
    left = [store.work(stage.key) / "checkpoints" / "step-1" for stage in (kept, other, unfinished)]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "model").write_text("weights")
        aged(folder.parent, 7)

    everything = {kept.key, other.key, unfinished.key}
    claim = Claims(store.claims).take(other.key)
    garbage = list(find_garbage(store, everything, seconds=DAY))
    claim.release()

    assert [(one.what, one.path, one.size) for one in garbage] == [("checkpoint", left[0].parent, 7)]
    for one in garbage:
        remove(store, one)
    assert [folder.exists() for folder in left] == [False, True, True]
    assert [path.name for path in store.work(kept.key).iterdir()] == ["log.txt"]


def test_folder_that_another_process_removes_meanwhile_is_none(store, stages, monkeypatch):
    gone = store.root / "artifacts" / "number" / ".probe-of-another-process"
    gone.mkdir()
    listed = Path.glob

    def glob(self, pattern):
        found = sorted(listed(self, pattern))
        if gone in found:
            gone.rmdir()
        return iter(found)

    monkeypatch.setattr(Path, "glob", glob)

    assert gone not in {path for _, path in found(store, {stage.key for stage in stages}, -1)}
    assert not gone.exists()
